//! Files of kernel file systems, and directories.

use std::fs::DirBuilder;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::Error;

/// Opens `path` relative to `directory`.
pub(crate) fn open_at(directory: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Error> {
    rustix::fs::openat(directory, path, flags | OFlags::CLOEXEC, Mode::empty()).map_err(Error::on("open", path))
}

/// Writes to an existing file of a kernel file system. The content is written in one call, as such files require.
pub(crate) fn write_at(directory: BorrowedFd<'_>, path: &str, content: &[u8]) -> rustix::io::Result<()> {
    let file = rustix::fs::openat(directory, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, content).map(drop)
}

/// Reads a file of a kernel file system, up to `limit` bytes.
pub(crate) fn read_at(directory: BorrowedFd<'_>, path: &str, limit: usize) -> rustix::io::Result<Vec<u8>> {
    let file = rustix::fs::openat(directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut content = vec![0; limit];
    let mut length = 0;
    while length < limit {
        match rustix::io::read(&file, &mut content[length..])? {
            0 => break,
            count => length += count,
        }
    }
    content.truncate(length);
    Ok(content)
}

/// Makes a directory of the guest and its missing parents.
pub(crate) fn make_directories(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|error| Error::on("make directory", path)(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
}

/// Duplicates a descriptor.
pub(crate) fn duplicate(fd: impl AsFd) -> Result<OwnedFd, Error> {
    fd.as_fd()
        .try_clone_to_owned()
        .map_err(|error| Error::at("duplicate a descriptor")(Errno::from_io_error(&error).unwrap_or(Errno::MFILE)))
}
