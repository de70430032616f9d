//! `SIGCHLD` as a descriptor.

use std::os::fd::OwnedFd;
use std::ptr;

use super::{Result, check, owned};

/// Blocks `SIGCHLD` and gives a descriptor that is readable when one is pending.
pub(crate) fn block_sigchld() -> Result<OwnedFd> {
    let set = sigchld_set()?;
    // SAFETY: `set` is a valid signal set, and the old one is not asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) })?;
    // SAFETY: as above; -1 asks for a new descriptor.
    owned(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })
}

pub(crate) fn sigchld_set() -> Result<libc::sigset_t> {
    // SAFETY: sigset_t consists of integers; sigemptyset makes it valid and sigaddset keeps it so.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        check(libc::sigaddset(&raw mut set, libc::SIGCHLD))?;
        Ok(set)
    }
}
