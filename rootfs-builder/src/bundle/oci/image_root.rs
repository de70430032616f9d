//! Resolves paths of layers inside the root file system: to an open directory and a name in it.
//!
//! A layer may contain a link such as `/var/run -> /run`, and a later layer files below `/var/run`. They belong to the
//! image's `/run`, never to this machine's. The kernel resolves such paths as if the image were the root.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{Mode, mkdirat};

/// The image's root directory.
pub(super) struct ImageRoot(OwnedFd);

/// A name in an open directory of the image.
pub(super) struct Location {
    directory: OwnedFd,
    name: OsString,
}

impl ImageRoot {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(fs::File::open(path)?.into()))
    }

    /// Resolves a path, and creates missing parent directories. Returns `None` for the root.
    pub(super) fn locate(&self, path: &Path) -> io::Result<Option<Location>> {
        let path = normalize(path)?;
        let Some(name) = path.file_name() else { return Ok(None) };
        let directory = self.directory(path.parent().unwrap_or(Path::new("")))?;
        Ok(Some(Location { directory, name: name.into() }))
    }

    fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.resolve(path) {
            Err(Errno::ENOENT) => {}
            resolved => return Ok(resolved?),
        }
        let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        let parent_directory = self.directory(parent)?;
        match mkdirat(&parent_directory, name, Mode::from_bits_truncate(0o755)) {
            // A link to a directory that does not exist yet.
            Err(Errno::EEXIST) => self.directory(&normalize(&parent.join(readlinkat(&parent_directory, name)?))?),
            made => Ok(made.and_then(|()| self.resolve(path))?),
        }
    }

    fn resolve(&self, path: &Path) -> nix::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        openat2(&self.0, path, OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT))
    }
}

impl Location {
    pub(super) fn directory(&self) -> impl AsFd {
        &self.directory
    }

    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    /// A path to the entry. It is valid as long as this location, and resolving it looks up only the name.
    pub(super) fn path(&self) -> PathBuf {
        self.sibling(&self.name)
    }

    /// A path to another name in the same directory.
    pub(super) fn sibling(&self, name: &OsStr) -> PathBuf {
        Path::new("/proc/self/fd").join(self.directory.as_raw_fd().to_string()).join(name)
    }

    /// Removes the entry with everything in it.
    pub(super) fn clear(&self) -> io::Result<()> {
        remove(&self.path())
    }
}

/// Removes a file or a whole directory. It is no error if there is none. Does not follow links.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a leading `/` or `./` from a path of an archive. Refuses a path with `..`.
pub(super) fn normalize(path: &Path) -> io::Result<PathBuf> {
    let part = |component| match component {
        Component::Normal(name) => Some(Ok(name)),
        Component::CurDir | Component::RootDir => None,
        Component::ParentDir | Component::Prefix(_) => {
            Some(Err(io::Error::new(io::ErrorKind::InvalidData, "the path leads out of the image")))
        }
    };
    path.components().filter_map(part).collect()
}
