//! Paths inside a container's root file system, whose content may be hostile.
//!
//! A path is resolved only once. Symbolic links are resolved relative to the container's root, and magic links of
//! `/proc` are not followed. The resulting descriptor is then used for mounts and writes.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::{Errno, Result};

/// Number of attempts for a resolution that a concurrent rename disturbs.
const ATTEMPTS: usize = 128;

/// Maximum number of dangling links that are followed, the kernel's limit for other links.
const MAX_LINKS: usize = 40;

/// The kind of file to make if a path does not exist.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Missing {
    /// A directory.
    Directory,
    /// An empty file.
    File,
}

/// Opens `path` in `root`.
pub(crate) fn open(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    resolve(root, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Opens `path` in `root`. The path must not contain a symbolic link.
pub(crate) fn open_plain(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    resolve(root, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS)
}

fn resolve(root: BorrowedFd<'_>, path: &Path, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd> {
    for _ in 0..ATTEMPTS {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens `path` in `root` with `O_PATH`. Makes it and its parent directories if they are missing.
pub(crate) fn open_or_make(root: BorrowedFd<'_>, path: &Path, missing: Missing) -> Result<OwnedFd> {
    match open(root, path, OFlags::PATH) {
        Err(Errno::NOENT) => make_all(root, path, missing, MAX_LINKS),
        result => result,
    }
}

/// Opens the directory `path` in `root` with `O_PATH`. Makes it and its parents if they are missing.
pub(crate) fn open_or_make_directories(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    match open(root, path, OFlags::PATH | OFlags::DIRECTORY) {
        Err(Errno::NOENT) => make_all(root, path, Missing::Directory, MAX_LINKS),
        result => result,
    }
}

/// Makes missing directories, and `missing` as the last component. A dangling link is not replaced; its target is made.
/// `links` is the number of further links that may be followed.
fn make_all(root: BorrowedFd<'_>, path: &Path, missing: Missing, links: usize) -> Result<OwnedFd> {
    let directory_flags = OFlags::PATH | OFlags::DIRECTORY;
    let mut so_far = PathBuf::from("/");
    let mut place = open(root, &so_far, directory_flags)?;
    let mut rest = path.components();
    while let Some(name) = rest.next() {
        let parent = so_far.clone();
        so_far.push(name);
        let kind = if rest.as_path() == Path::new("") { missing } else { Missing::Directory };
        let flags = if kind == Missing::Directory { directory_flags } else { OFlags::PATH };
        place = match open(root, &so_far, flags) {
            Err(Errno::NOENT) => {
                let name = Path::new(name.as_os_str());
                make_component(place.as_fd(), name, kind)?;
                match rustix::fs::readlinkat(&place, name, Vec::new()) {
                    Ok(target) => {
                        let target = Path::new(OsStr::from_bytes(target.to_bytes()));
                        let links = links.checked_sub(1).ok_or(Errno::LOOP)?;
                        return make_all(root, &parent.join(target).join(rest.as_path()), missing, links);
                    }
                    Err(_) => open(root, &so_far, flags)?,
                }
            }
            result => result?,
        };
    }
    Ok(place)
}

fn make_component(parent: BorrowedFd<'_>, name: &Path, missing: Missing) -> Result<()> {
    let made = match missing {
        Missing::Directory => rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)),
        Missing::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o755)).map(drop)
        }
    };
    match made {
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}

/// The parent directory of a path and its last component. `None` for the root itself and for paths that end in `..`.
pub(crate) fn split(path: &Path) -> Option<(PathBuf, PathBuf)> {
    match path.components().next_back()? {
        Component::Normal(name) => Some((path.parent()?.to_owned(), name.into())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    fn root() -> (TempDir, OwnedFd) {
        let directory = TempDir::new().unwrap();
        let root = rustix::fs::open(directory.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        (directory, root)
    }

    #[test]
    fn missing_directories_and_files_are_made() {
        let (directory, root) = root();
        open_or_make(root.as_fd(), Path::new("/a/b/c"), Missing::File).unwrap();
        assert!(directory.path().join("a/b/c").is_file());
        open_or_make(root.as_fd(), Path::new("a/d"), Missing::Directory).unwrap();
        assert!(directory.path().join("a/d").is_dir());
    }

    #[test]
    fn links_never_lead_out_of_the_root() {
        let (directory, root) = root();
        let outside = TempDir::new().unwrap();
        symlink(outside.path(), directory.path().join("absolute")).unwrap();
        symlink("../../../../../../../../../../..", directory.path().join("upwards")).unwrap();
        std::fs::create_dir(directory.path().join("inside")).unwrap();
        open_or_make(root.as_fd(), Path::new("/absolute/file"), Missing::File).unwrap();
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        let inside = directory.path().join(outside.path().strip_prefix("/").unwrap());
        assert!(inside.join("file").is_file());
        open_or_make(root.as_fd(), Path::new("/upwards/inside/file"), Missing::File).unwrap();
        assert!(directory.path().join("inside/file").is_file());
    }

    #[test]
    fn the_target_of_a_dangling_link_is_made() {
        let (directory, root) = root();
        symlink("../../../made/deep", directory.path().join("link")).unwrap();
        symlink("/made/file", directory.path().join("last")).unwrap();
        symlink("round", directory.path().join("round")).unwrap();
        open_or_make(root.as_fd(), Path::new("/link/below"), Missing::Directory).unwrap();
        open_or_make(root.as_fd(), Path::new("/last"), Missing::File).unwrap();
        assert!(directory.path().join("made/deep/below").is_dir() && directory.path().join("made/file").is_file());
        assert!(directory.path().join("link").is_symlink());
        assert_eq!(open_or_make(root.as_fd(), Path::new("/round"), Missing::File).unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn magic_links_are_not_followed() {
        let slash = rustix::fs::open("/", OFlags::PATH, Mode::empty()).unwrap();
        let error = open(slash.as_fd(), Path::new("/proc/self/root/etc"), OFlags::PATH).unwrap_err();
        assert_eq!(error, Errno::LOOP);
    }

    #[test]
    fn a_plain_path_must_not_contain_links() {
        let (directory, root) = root();
        std::fs::create_dir(directory.path().join("real")).unwrap();
        symlink("real", directory.path().join("proc")).unwrap();
        assert_eq!(open_plain(root.as_fd(), Path::new("/proc"), OFlags::PATH).unwrap_err(), Errno::LOOP);
        assert!(open_plain(root.as_fd(), Path::new("/real"), OFlags::PATH).is_ok());
    }
}
