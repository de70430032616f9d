//! Copies of a directory's content, for a tmpfs with the option `tmpcopyup`.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::{Errno, Result};

/// Copies the content of `from` to the empty directory `to`, and the owner of `from`. The content may be hostile, so no
/// symbolic link is followed.
pub(crate) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let stat = rustix::fs::fstat(from)?;
    rustix::fs::chownat(to, c"", owner(&stat).0, owner(&stat).1, AtFlags::EMPTY_PATH)?;
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(from, to, name)?;
        }
    }
    Ok(())
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<()> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let (kind, mode) = (FileType::from_raw_mode(stat.st_mode), Mode::from_raw_mode(stat.st_mode & 0o7777));
    match kind {
        FileType::Directory => {
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            let open = |parent| open(parent, name, OFlags::RDONLY | OFlags::DIRECTORY);
            copy(open(from)?.as_fd(), open(to)?.as_fd())?;
        }
        FileType::RegularFile => copy_file(from, to, name)?,
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(&target, to, name)?;
        }
        kind => rustix::fs::mknodat(to, name, kind, Mode::empty(), stat.st_rdev)?,
    }
    let (uid, gid) = owner(&stat);
    rustix::fs::chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    match kind {
        FileType::Symlink => Ok(()),
        _ => rustix::fs::chmodat(to, name, mode, AtFlags::empty()),
    }
}

fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<()> {
    let mut source = File::from(open(from, name, OFlags::RDONLY | OFlags::NONBLOCK)?);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut copy = File::from(rustix::fs::openat(to, name, flags, Mode::RUSR)?);
    let copied = std::io::copy(&mut source, &mut copy);
    copied.map(drop).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn open(parent: BorrowedFd<'_>, name: &std::ffi::CStr, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::openat(parent, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_copy_has_the_content_owners_and_modes_of_the_original() {
        let (original, copied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(original.path().join("a/b")).unwrap();
        fs::write(original.path().join("a/b/file"), "content").unwrap();
        fs::set_permissions(original.path().join("a"), PermissionsExt::from_mode(0o1751)).unwrap();
        std::os::unix::fs::chown(original.path().join("a/b/file"), Some(3), Some(4)).unwrap();
        fs::set_permissions(original.path().join("a/b/file"), PermissionsExt::from_mode(0o4710)).unwrap();
        symlink("/nowhere", original.path().join("a/link")).unwrap();
        let open = |path: &std::path::Path| rustix::fs::open(path, OFlags::RDONLY, Mode::empty()).unwrap();
        copy(open(original.path()).as_fd(), open(copied.path()).as_fd()).unwrap();
        let file = fs::metadata(copied.path().join("a/b/file")).unwrap();
        assert_eq!((file.mode() & 0o7777, file.uid(), file.gid()), (0o4710, 3, 4));
        assert_eq!(fs::read_to_string(copied.path().join("a/b/file")).unwrap(), "content");
        assert_eq!(fs::metadata(copied.path().join("a")).unwrap().mode() & 0o7777, 0o1751);
        assert_eq!(fs::read_link(copied.path().join("a/link")).unwrap(), std::path::Path::new("/nowhere"));
    }
}
