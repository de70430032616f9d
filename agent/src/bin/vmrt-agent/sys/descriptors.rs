//! The open descriptors of a process that executes a program.

use std::ffi::c_uint;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;

use super::{Result, check, owned};

/// Makes `streams` descriptors 0 to 2 of the caller, and `others` the descriptors from 3 up, with close-on-exec. Closes
/// every other descriptor. Returns the new descriptors of `others`.
///
/// For a process that is about to execute a program: descriptors that it opened before are invalid afterwards.
pub(crate) fn set_open_descriptors<const N: usize>(
    streams: [BorrowedFd<'_>; 3],
    others: &[Option<BorrowedFd<'_>>; N],
) -> Result<[Option<OwnedFd>; N]> {
    /// Greater than every assigned number.
    const FIRST_TEMPORARY: RawFd = 64;
    let all = streams.into_iter().map(Some).chain(others.iter().copied());
    let temporary = all.map(|fd| fd.map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, FIRST_TEMPORARY)).transpose());
    let temporary = temporary.collect::<Result<Vec<_>>>()?;
    close_between(0, c_uint::try_from(FIRST_TEMPORARY - 1).map_err(|_| Errno::INVAL)?)?;
    let mut assigned = [const { None }; N];
    for (number, from) in (0..).zip(&temporary) {
        let Some(from) = from else { continue };
        let flags = if number < 3 { 0 } else { libc::O_CLOEXEC };
        // SAFETY: the number is free: every descriptor below FIRST_TEMPORARY is closed.
        let to = owned(unsafe { libc::dup3(from.as_raw_fd(), number, flags) })?;
        match usize::try_from(number - 3) {
            Ok(index) => assigned[index] = Some(to),
            Err(_) => std::mem::forget(to),
        }
    }
    std::mem::forget(temporary);
    close_between(c_uint::try_from(FIRST_TEMPORARY).map_err(|_| Errno::INVAL)?, c_uint::MAX)?;
    Ok(assigned)
}

fn close_between(first: c_uint, last: c_uint) -> Result<()> {
    // SAFETY: no memory is passed; the only caller uses no descriptor of that range afterwards.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}
