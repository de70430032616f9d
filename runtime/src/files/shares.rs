//! What of the host a container's guest gets to see: its root file system and the sources of its bind mounts.
//!
//! Each is opened here, once, as a descriptor that is only a place (`O_PATH`). The VMM serves what is below it, and
//! the specification the guest gets names it by the share's path in the guest.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use agent::SpecialFile;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use oci_spec::runtime::{Mount, Spec};
use rustix::mount::{OpenTreeFlags, open_tree};
use thiserror::Error;
use vmm::control::ShareOptions;

use crate::base::container_id::ContainerId;
use crate::files::device_directories::{self, Expanded};
use crate::files::id_mapped_mounts;
use crate::files::special;
use crate::spec::bundle::Bundle;
use crate::spec::mounts::{is_bind, options};

/// Why something cannot be shared.
#[derive(Debug, Error)]
pub(crate) enum ShareError {
    #[error("invalid rootfs: {}", path.display())]
    Rootfs { path: PathBuf, source: io::Error },
    #[error("error mounting \"{}\" to rootfs at \"{}\"", path.display(), destination.display())]
    Source { path: PathBuf, destination: PathBuf, source: io::Error },
    #[error("mount {} has no source", .0.display())]
    NoSource(PathBuf),
    #[error("mount {} cannot be shared with a virtual machine: {reason}", path.display())]
    Special { path: PathBuf, reason: &'static str },
    #[error(
        "mount option {option} of {} is refused: what is mounted in the container's virtual machine cannot appear on the host",
        destination.display()
    )]
    Shared { option: String, destination: PathBuf },
}

/// One directory or file to share.
#[derive(Debug)]
pub(crate) struct Share {
    /// `CONTAINER/rootfs` or `CONTAINER/volume-N`.
    pub(crate) name: String,
    pub(crate) options: ShareOptions,
    /// `O_PATH` descriptor of it.
    pub(crate) source: OwnedFd,
}

/// Everything a container needs of the host.
#[derive(Debug)]
pub(crate) struct HostFiles {
    /// The specification as the guest sees it.
    pub(crate) spec: Spec,
    pub(crate) shares: Vec<Share>,
    /// What cannot be shared and the guest makes anew.
    pub(crate) special: Vec<SpecialFile>,
    /// `O_PATH` descriptors of the sockets among them, in their order.
    pub(crate) sockets: Vec<OwnedFd>,
    /// Where the guest's own devices are mounted in the place of the host's.
    pub(crate) guest_devices: Vec<PathBuf>,
}

/// What the source of a bind mount is.
enum Source {
    /// With the places below it that need mounts of their own.
    Shared(Share, Vec<PathBuf>),
    Special(SpecialFile, Option<OwnedFd>),
}

/// Opens everything a bundle's container needs of the host.
pub(crate) fn open_all(id: &ContainerId, bundle: &Bundle) -> Result<HostFiles, ShareError> {
    let mut spec = bundle.spec.clone();
    let shares = vec![open_rootfs(id, bundle, &mut spec)?];
    let mounts = spec.mounts_mut().take();
    let mut files = HostFiles { spec, shares, special: Vec::new(), sockets: Vec::new(), guest_devices: Vec::new() };
    let mounts = mounts.map(|mounts| files.add_sources(id, &bundle.dir, mounts)).transpose()?;
    files.spec.set_mounts(mounts);
    Ok(files)
}

impl HostFiles {
    /// Opens the sources of bind mounts. Gives the mounts as the guest is to make them.
    fn add_sources(&mut self, id: &ContainerId, bundle: &Path, mounts: Vec<Mount>) -> Result<Vec<Mount>, ShareError> {
        let mut all = Vec::new();
        for mount in mounts {
            if !is_bind(&mount) {
                all.push(mount);
                continue;
            }
            let (path, place, stat) = open_source(bundle, &mount)?;
            if !is_directory(&stat) {
                self.add_source(id, mount, (path, place, stat), &mut all)?;
                continue;
            }
            let expanded = device_directories::expand(mount.clone(), &place, &self.spec);
            let expanded = expanded.map_err(failed(&path, &mount))?;
            // The mount itself comes first, if it is of the host's files.
            let mut opened = Some((path, place, stat));
            for one in expanded {
                match (one, opened.take()) {
                    (Expanded::Guest(mount), _) => {
                        self.guest_devices.push(mount.destination().clone());
                        all.push(mount);
                    }
                    (Expanded::Host(mount), Some(opened)) => self.add_source(id, mount, opened, &mut all)?,
                    (Expanded::Host(mount), None) => {
                        let opened = open_source(bundle, &mount)?;
                        self.add_source(id, mount, opened, &mut all)?;
                    }
                }
            }
        }
        Ok(all)
    }

    /// Has the guest get what was opened, and puts the mounts of it behind `all`.
    fn add_source(
        &mut self,
        id: &ContainerId,
        mut mount: Mount,
        opened: (PathBuf, OwnedFd, FileStat),
        all: &mut Vec<Mount>,
    ) -> Result<(), ShareError> {
        let name = format!("volume-{}", self.volumes());
        match volume(id, &name, &mount, opened)? {
            Source::Shared(share, below) => {
                mount.set_source(Some(guest_path(&share.name)));
                let below: Vec<_> = below.iter().map(|path| id_mapped_mounts::mount_below(&mount, path)).collect();
                all.push(mount);
                all.extend(below);
                self.shares.push(share);
            }
            Source::Special(file, socket) => {
                mount.set_source(Some(file.path(&id.to_string())));
                all.push(mount);
                self.special.push(file);
                self.sockets.extend(socket);
            }
        }
        Ok(())
    }

    /// How many sources there are already, beside the root.
    fn volumes(&self) -> usize {
        self.shares.len() - 1 + self.special.len()
    }
}

/// The guest remounts a read-only root itself: before that it makes mount points in it.
fn open_rootfs(id: &ContainerId, bundle: &Bundle, spec: &mut Spec) -> Result<Share, ShareError> {
    let path = bundle.rootfs();
    let source = open(&path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let source = source.map_err(|error| ShareError::Rootfs { path, source: error.into() })?;
    let options = ShareOptions { read_only: false, follows_host: true };
    let share = Share { name: format!("{id}/rootfs"), options, source };
    if let Some(root) = spec.root_mut() {
        root.set_path(guest_path(&share.name));
    }
    Ok(share)
}

fn open_source(bundle: &Path, mount: &Mount) -> Result<(PathBuf, OwnedFd, FileStat), ShareError> {
    let source = mount.source().as_ref().filter(|source| !source.as_os_str().is_empty());
    let path = bundle.join(source.ok_or_else(|| ShareError::NoSource(mount.destination().clone()))?);
    if let Some(option) = options(mount).find(|option| matches!(*option, "shared" | "rshared")) {
        return Err(ShareError::Shared { option: option.into(), destination: mount.destination().clone() });
    }
    let open = || {
        let place = open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let stat = fstat(&place)?;
        Ok((place, stat))
    };
    let (place, stat) = open().map_err(|error: Errno| failed(&path, mount)(error.into()))?;
    Ok((path, place, stat))
}

fn failed(path: &Path, mount: &Mount) -> impl Fn(io::Error) -> ShareError + use<> {
    let (path, destination) = (path.to_owned(), mount.destination().clone());
    move |source| ShareError::Source { path: path.clone(), destination: destination.clone(), source }
}

fn is_directory(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

fn volume(
    id: &ContainerId,
    name: &str,
    mount: &Mount,
    (path, place, stat): (PathBuf, OwnedFd, FileStat),
) -> Result<Source, ShareError> {
    match special::in_guest(name, &stat, &place) {
        Err(reason) => Err(ShareError::Special { path, reason }),
        Ok(Some((file, is_socket))) => Ok(Source::Special(file, is_socket.then_some(place))),
        Ok(None) => {
            let read_only = options(mount).any(|option| option == "ro" || option == "rro");
            let below = id_mapped_mounts::mounts_below(&place, mount).map_err(failed(&path, mount))?;
            let follows_host = follows_host(mount);
            let source = if follows_host { place } else { detach(&place, mount).map_err(failed(&path, mount))? };
            let options = ShareOptions { read_only, follows_host };
            Ok(Source::Shared(Share { name: format!("{id}/{name}"), options, source }, below))
        }
    }
}

/// Whether what the host mounts below the source appears: then the share is the place in the host's own tree.
fn follows_host(mount: &Mount) -> bool {
    is_recursive(mount) && !options(mount).any(|option| matches!(option, "private" | "rprivate"))
}

fn is_recursive(mount: &Mount) -> bool {
    options(mount).any(|option| option == "rbind")
}

/// As a bind mount is a view of its own: without what is mounted below where it does not recurse, and without what the host
/// mounts there later where it is private.
fn detach(place: &OwnedFd, mount: &Mount) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if is_recursive(mount) {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(open_tree(place, "", flags)?)
}

fn guest_path(share: &str) -> PathBuf {
    Path::new(agent::SHARES_DIR).join(share)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;

    use serde_json::{Value, json};

    use super::*;
    use crate::spec::bundle::CONFIG_FILE;

    fn bundle(mounts: &Value) -> (tempfile::TempDir, Bundle) {
        let dir = tempfile::tempdir().unwrap();
        let mut spec: Value = serde_json::from_str(crate::spec::STARTER).unwrap();
        spec["mounts"] = mounts.clone();
        fs::write(dir.path().join(CONFIG_FILE), spec.to_string()).unwrap();
        fs::create_dir(dir.path().join("rootfs")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let log = crate::base::log::Log::new(None, crate::base::log::Format::Text, false).unwrap();
        let bundle = Bundle::load(dir.path(), None, &log).unwrap();
        (dir, bundle)
    }

    fn open_one(mount: &Value) -> Result<HostFiles, ShareError> {
        let (_guard, bundle) = bundle(&json!([mount]));
        open_all(&"web".parse().unwrap(), &bundle)
    }

    #[test]
    fn paths_become_the_guests() {
        let (_guard, bundle) = bundle(&json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/a", "type": "bind", "source": "file", "options": ["ro"]},
            {"destination": "/b", "type": "none", "source": "rootfs", "options": ["rbind"]},
        ]));
        let HostFiles { spec, shares, .. } = open_all(&"web".parse().unwrap(), &bundle).unwrap();
        let names: Vec<_> = shares.iter().map(|share| (share.name.as_str(), share.options.read_only)).collect();
        assert_eq!(names, [("web/rootfs", false), ("web/volume-0", true), ("web/volume-1", false)]);
        assert_eq!(spec.root().as_ref().unwrap().path(), Path::new("/run/vmrt/shares/web/rootfs"));
        let sources: Vec<_> = spec.mounts().iter().flatten().map(|mount| mount.source().clone().unwrap()).collect();
        let expected = ["proc", "/run/vmrt/shares/web/volume-0", "/run/vmrt/shares/web/volume-1"];
        assert_eq!(sources, expected.map(PathBuf::from));
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = open_one(&json!({"destination": "/x", "type": "bind", "source": "/nonexistent"})).unwrap_err();
        assert_eq!(error.to_string(), "error mounting \"/nonexistent\" to rootfs at \"/x\"");
        let error = open_one(&json!({"destination": "/x", "type": "bind"})).unwrap_err();
        assert_eq!(error.to_string(), "mount /x has no source");
        let (_guard, bundle) = bundle(&json!([]));
        fs::remove_dir(bundle.rootfs()).unwrap();
        assert!(matches!(open_all(&"web".parse().unwrap(), &bundle), Err(ShareError::Rootfs { .. })));
    }

    #[test]
    fn a_mount_that_would_lead_back_to_the_host_is_refused_by_name() {
        let mount = json!({"destination": "/x", "type": "bind", "source": "/", "options": ["rbind", "rshared"]});
        let error = open_one(&mount).unwrap_err().to_string();
        assert!(error.starts_with("mount option rshared of /x is refused"), "{error}");
    }

    #[test]
    fn special_files_are_the_guests_own() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let files = open_one(&json!({"destination": "/x", "type": "bind", "source": socket})).unwrap();
        assert_eq!((files.shares.len(), files.special.len(), files.sockets.len()), (1, 1, 1));
        let source = files.spec.mounts().as_ref().unwrap()[0].source().clone();
        assert_eq!(source, Some("/run/vmrt/special/web/volume-0".into()));
        let error = open_one(&json!({"destination": "/x", "type": "bind", "source": "/dev/kvm"})).unwrap_err();
        assert!(error.to_string().starts_with("mount /dev/kvm cannot be shared"), "{error}");
    }

    #[test]
    fn a_remount_has_no_source() {
        let mount = json!({"destination": "/proc", "type": "bind", "options": ["bind", "remount", "ro"]});
        assert_eq!(open_one(&mount).unwrap().shares.len(), 1);
    }
}
