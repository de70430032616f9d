//! `SIGCHLD` as a descriptor.

use std::os::fd::OwnedFd;
use std::ptr;

use super::{Result, check, owned};

/// Blocks `SIGCHLD` and returns a descriptor that is readable while the signal is pending.
pub(crate) fn block_sigchld() -> Result<OwnedFd> {
    let set = sigchld_set()?;
    // SAFETY: `set` is a valid signal set, and the old one is not requested.
    check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) })?;
    // SAFETY: `set` is valid; -1 requests a new descriptor.
    owned(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })
}

/// The signal set that contains only `SIGCHLD`.
pub(crate) fn sigchld_set() -> Result<libc::sigset_t> {
    // SAFETY: sigset_t consists of integers; sigemptyset makes it valid and sigaddset preserves that.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        check(libc::sigaddset(&raw mut set, libc::SIGCHLD))?;
        Ok(set)
    }
}
