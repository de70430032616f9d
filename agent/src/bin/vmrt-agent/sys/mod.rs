//! System calls without a wrapper in the crates in use. Each is a safe function, or an unsafe one that documents its
//! requirements.

pub(crate) mod bpf;
pub(crate) mod cgroup;
pub(crate) mod clock;
pub(crate) mod clone;
pub(crate) mod descriptors;
pub(crate) mod files;
pub(crate) mod interface;
pub(crate) mod loop_device;
pub(crate) mod mount;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod scheduling;
pub(crate) mod seccomp;
pub(crate) mod signals;
pub(crate) mod vsock;

use std::ffi::c_int;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

/// The result of a system call.
pub(crate) type Result<T> = std::result::Result<T, Errno>;

/// The error of a system call that returned -1.
pub(crate) fn check(result: impl TryInto<i64>) -> Result<i64> {
    match result.try_into() {
        Ok(-1) | Err(_) => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
        Ok(value) => Ok(value),
    }
}

/// The new descriptor that a system call returned.
pub(crate) fn owned(result: c_int) -> Result<OwnedFd> {
    let fd = check(result)?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just made this descriptor for this call, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
