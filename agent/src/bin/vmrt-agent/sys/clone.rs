//! `clone3(2)`.

use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;

use super::{Result, check, owned};

/// The two returns of [`clone3`].
pub(crate) enum Cloned {
    /// The new process.
    Child,
    /// The calling process: pid and pidfd of the new one.
    Parent(i32, OwnedFd),
}

/// Makes a process in new namespaces (`CLONE_NEW*` in `flags`). It starts in the cgroup whose directory is `cgroup`, or
/// in the caller's cgroup. With `CLONE_PARENT` it is a child of the caller's parent.
///
/// # Safety
///
/// The calling process must have only one thread, because the child continues with a copy of its memory, locks
/// included.
pub(crate) unsafe fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // With `CLONE_PARENT` the new process gets the caller's exit signal, and the kernel accepts no other.
    let exit_signal = if flags & CLONE_PARENT == 0 { u64::from(libc::SIGCHLD.cast_unsigned()) } else { 0 };
    let into_cgroup = if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
    let args = CloneArgs {
        flags: flags | into_cgroup | u64::from(libc::CLONE_PIDFD.cast_unsigned()),
        pidfd: ptr::from_mut(&mut pidfd).addr() as u64,
        exit_signal,
        cgroup: cgroup.map_or(0, |cgroup| u64::from(cgroup.as_raw_fd().cast_unsigned())),
        ..CloneArgs::default()
    };
    // SAFETY: `args` is a valid clone_args of the given length and `pidfd` outlives the call. Without a stack and
    // without shared memory the child returns here as after fork(2), and the caller guarantees a single thread.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) })?;
    match i32::try_from(pid).map_err(|_| Errno::OVERFLOW)? {
        0 => Ok(Cloned::Child),
        pid => owned(pidfd).map(|pidfd| Cloned::Parent(pid, pidfd)),
    }
}

/// The kernel's flag for [`clone3`]. The C library's constant of that name has too few bits.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The kernel's flag for [`clone3`] that makes the new process the caller's sibling.
pub(crate) const CLONE_PARENT: u64 = 0x8000;

/// The kernel's `struct clone_args`.
#[derive(Default)]
#[repr(C)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}
