//! Where an entry of a layer goes: a directory inside the root file system, held open, and a name in it.
//!
//! A layer may hold a link such as `/var/run -> /run` and a later one files under `/var/run`: they belong in the
//! image's `/run`, and never in this machine's. The kernel resolves such paths as if the image were the root.

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
pub(super) struct Place {
    directory: OwnedFd,
    name: OsString,
}

impl ImageRoot {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(fs::File::open(path)?.into()))
    }

    /// The place of a path; the directories that lead to it are made where they do not exist. None for the root.
    pub(super) fn place(&self, path: &Path) -> io::Result<Option<Place>> {
        let path = normalize(path)?;
        let Some(name) = path.file_name() else { return Ok(None) };
        let directory = self.directory(path.parent().unwrap_or(Path::new("")))?;
        Ok(Some(Place { directory, name: name.into() }))
    }

    fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.resolve(path) {
            Err(Errno::ENOENT) => {}
            resolved => return Ok(resolved?),
        }
        let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        let parent_directory = self.directory(parent)?;
        match mkdirat(&parent_directory, name, Mode::from_bits_truncate(0o755)) {
            // A link to a directory that is not there yet.
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

impl Place {
    pub(super) fn directory(&self) -> impl AsFd {
        &self.directory
    }

    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    /// A path to it that holds as long as this place does, and of which nothing but the name is looked up.
    pub(super) fn path(&self) -> PathBuf {
        self.sibling(&self.name)
    }

    /// A path to another name in the same directory.
    pub(super) fn sibling(&self, name: &OsStr) -> PathBuf {
        Path::new("/proc/self/fd").join(self.directory.as_raw_fd().to_string()).join(name)
    }

    /// Removes what is there, with everything in it.
    pub(super) fn clear(&self) -> io::Result<()> {
        remove(&self.path())
    }
}

/// Removes a file or a whole directory; it is no error when there is none. Links are not followed.
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

/// A path of an archive without a leading `/` or `./`; one with `..` in it is refused.
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
