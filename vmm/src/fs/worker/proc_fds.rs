//! The process's open file descriptors, as the directory `/proc/self/fd`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use rustix::path::DecInt;

use crate::fs::error::FsError;

/// The open directory `/proc/self/fd`. It stays usable when `/proc` is no longer reachable.
#[derive(Clone, Debug)]
pub struct ProcFds(Arc<OwnedFd>);

impl AsFd for ProcFds {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl ProcFds {
    /// Opens the directory: as a mount of its own, from which `..` leads nowhere, if the process may make one.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn open() -> Result<Self, FsError> {
        let directory = clone_directory().or_else(|_| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open("/proc/self/fd", flags, Mode::empty())
        });
        directory.map(|fd| Self(Arc::new(fd))).map_err(|errno| FsError::System("open /proc/self/fd", errno.into()))
    }

    /// The host's path of the file behind `fd`.
    pub(crate) fn target(&self, fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
        rustix::fs::readlinkat(&self.0, DecInt::from_fd(fd), Vec::new()).map(std::ffi::CString::into_bytes)
    }
}

fn clone_directory() -> Result<OwnedFd, Errno> {
    rustix::mount::open_tree(CWD, "/proc/self/fd", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
}

/// The name of `fd` in [`ProcFds`], which is a worker's working directory.
pub(crate) fn fd_name(fd: &impl AsFd) -> DecInt {
    DecInt::from_fd(fd.as_fd())
}
