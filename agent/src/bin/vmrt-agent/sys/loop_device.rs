//! Requests to `/dev/loop-control`.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::{Result, check};

/// Adds loop device `number`; `control` is an open `/dev/loop-control`.
pub(crate) fn add(control: BorrowedFd<'_>, number: u32) -> Result<()> {
    /// `LOOP_CTL_ADD` of the kernel's `linux/loop.h`.
    const ADD: libc::Ioctl = 0x4c80;
    // SAFETY: `LOOP_CTL_ADD` takes its argument by value and accesses no memory of the caller.
    check(unsafe { libc::ioctl(control.as_raw_fd(), ADD, libc::c_ulong::from(number)) })?;
    Ok(())
}
