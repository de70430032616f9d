//! Applies a layer's archive: additions, changes and whiteouts (image-spec: layer.md).

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, SFlag, makedev, mknodat};
use nix::unistd::{Gid, Uid, fchownat, linkat};
use oci_spec::image::{Descriptor, MediaType};
use tar::{Archive, Entry, EntryType};

use super::Error;
use super::blob::{self, Hashing};
use super::image_root::{self, ImageRoot, Location};
use crate::interrupt::Interruptible;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Applies a layer to `rootfs`, and checks the digests of the blob and of the archive in it.
pub(super) fn apply(layout: &Path, descriptor: &Descriptor, diff_id: &str, rootfs: &Path) -> Result<(), Error> {
    let path = blob::path(layout, descriptor)?;
    let unreadable = |source| Error::Read { path: path.clone(), source };
    let mut compressed = Hashing::new(Interruptible(File::open(&path).map_err(unreadable)?));
    let mut archive = Hashing::new(decompress(descriptor.media_type(), &mut compressed)?.map_err(unreadable)?);
    unpack(&mut archive, rootfs).map_err(|(entry, source)| Error::Unpack {
        digest: descriptor.digest().clone(),
        entry,
        source,
    })?;
    let found = archive.finish().map_err(unreadable)?;
    blob::check_digest("a layer's archive", diff_id, found)?;
    blob::check_digest("a layer", descriptor.digest().as_ref(), compressed.finish().map_err(unreadable)?)
}

fn decompress<'a>(media_type: &MediaType, blob: &'a mut dyn Read) -> Result<io::Result<Box<dyn Read + 'a>>, Error> {
    let name = media_type.to_string();
    Ok(match name.rsplit(['.', '+']).next() {
        Some("tar") => Ok(Box::new(blob)),
        Some("gzip") => Ok(Box::new(MultiGzDecoder::new(blob))),
        Some("zstd") => zstd::Decoder::new(blob).map(|decoder| Box::new(decoder) as Box<dyn Read>),
        _ => return Err(Error::MediaType { what: "layer", media_type: media_type.clone() }),
    })
}

type UnpackResult<T> = Result<T, (PathBuf, io::Error)>;

/// Unpacks every entry. An error includes the path of the entry.
fn unpack(archive: &mut dyn Read, rootfs: &Path) -> UnpackResult<()> {
    let at_root = |source| (PathBuf::from("/"), source);
    let root = ImageRoot::open(rootfs).map_err(at_root)?;
    let mut layer = Layer { root, made: HashSet::new() };
    let mut archive = Archive::new(archive);
    archive.set_preserve_ownerships(true);
    archive.set_preserve_permissions(true);
    archive.set_unpack_xattrs(true);
    for entry in archive.entries().map_err(at_root)? {
        let mut entry = entry.map_err(at_root)?;
        let path = entry.path().map_err(at_root)?.into_owned();
        layer.add(&mut entry, &path).map_err(|source| (path, source))?;
    }
    Ok(())
}

struct Layer {
    root: ImageRoot,
    /// The paths that this layer has created. Its whiteouts only hide files of lower layers.
    made: HashSet<PathBuf>,
}

impl Layer {
    fn add(&mut self, entry: &mut Entry<'_, impl Read>, path: &Path) -> io::Result<()> {
        let Some(location) = self.root.locate(path)? else { return Ok(()) };
        let path = image_root::normalize(path)?;
        let name = location.name().as_bytes();
        if name == OPAQUE {
            return self.hide_all(&location, path.parent().unwrap_or(Path::new("")));
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.hide(&location, &path.with_file_name(OsStr::from_bytes(hidden)));
        }
        self.make(entry, &location)?;
        self.made.extend(path.ancestors().map(Path::to_path_buf));
        Ok(())
    }

    fn hide(&self, whiteout: &Location, path: &Path) -> io::Result<()> {
        match path.file_name() {
            Some(name) if !self.made.contains(path) => image_root::remove(&whiteout.sibling(name)),
            _ => Ok(()),
        }
    }

    fn hide_all(&self, whiteout: &Location, directory: &Path) -> io::Result<()> {
        for entry in fs::read_dir(whiteout.sibling(OsStr::new(".")))? {
            let name = entry?.file_name();
            self.hide(whiteout, &directory.join(name))?;
        }
        Ok(())
    }

    fn make(&self, entry: &mut Entry<'_, impl Read>, location: &Location) -> io::Result<()> {
        let kind = entry.header().entry_type();
        let is_directory = fs::symlink_metadata(location.path()).map(|metadata| metadata.is_dir());
        if !(kind.is_dir() && is_directory.unwrap_or(false)) {
            location.clear()?;
        }
        match kind {
            EntryType::Link => self.link(entry, location),
            EntryType::Char => make_node(entry, location, SFlag::S_IFCHR, device(entry)?),
            EntryType::Block => make_node(entry, location, SFlag::S_IFBLK, device(entry)?),
            EntryType::Fifo => make_node(entry, location, SFlag::S_IFIFO, 0),
            _ => entry.unpack(location.path()).map(drop),
        }
    }

    fn link(&self, entry: &Entry<'_, impl Read>, location: &Location) -> io::Result<()> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "a hard link without a target");
        let target = entry.link_name()?.ok_or_else(invalid)?;
        let target = self.root.locate(&target)?.ok_or_else(invalid)?;
        Ok(linkat(target.directory(), target.name(), location.directory(), location.name(), AtFlags::empty())?)
    }
}

fn device(entry: &Entry<'_, impl Read>) -> io::Result<u64> {
    let number = |part: Option<u32>| u64::from(part.unwrap_or(0));
    let header = entry.header();
    Ok(makedev(number(header.device_major()?), number(header.device_minor()?)))
}

fn make_node(entry: &Entry<'_, impl Read>, location: &Location, kind: SFlag, device: u64) -> io::Result<()> {
    let header = entry.header();
    let permissions = Mode::from_bits_truncate(header.mode()? & 0o7777);
    mknodat(location.directory(), location.name(), kind, permissions, device)?;
    let id = |id: u64| u32::try_from(id).map_err(io::Error::other);
    let (owner, group) = (Uid::from_raw(id(header.uid()?)?), Gid::from_raw(id(header.gid()?)?));
    fchownat(location.directory(), location.name(), Some(owner), Some(group), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    fs::set_permissions(location.path(), std::os::unix::fs::PermissionsExt::from_mode(permissions.bits()))
}
