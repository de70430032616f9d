//! Work in the network namespace of a container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};

use crate::error::Error;

/// Runs `work` in the network namespace of `process`. `proc` is the guest's `/proc`.
pub(crate) fn run_in<T>(
    proc: BorrowedFd<'_>,
    process: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    // The agent's own pidfd cannot be used to return: it stands for the agent's current namespace.
    let initial = open_own(proc)?;
    rustix::thread::move_into_thread_name_spaces(process, ThreadNameSpaceType::NETWORK)
        .map_err(Error::at("join the container's network namespace"))?;
    let result = work();
    rustix::thread::move_into_link_name_space(initial.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(Error::at("return to the guest's network namespace"))?;
    result
}

/// A descriptor of the caller's current network namespace.
pub(crate) fn open_own(proc: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    rustix::fs::openat(proc, "self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::at("open the guest's network namespace"))
}
