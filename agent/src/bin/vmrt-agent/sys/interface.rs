//! Network interface flags.

use std::os::fd::AsRawFd;

use rustix::io::Errno;

use super::{Result, check, owned};

/// Brings an interface up in the network namespace of the caller.
pub(crate) fn bring_up(name: &[u8]) -> Result<()> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is passed.
    let socket = owned(unsafe { libc::socket(libc::AF_INET, kind, 0) })?;
    // SAFETY: ifreq consists of integers and a union of plain data, for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).map_err(|_| Errno::INVAL)?;
    // SAFETY: SIOCSIFFLAGS reads an ifreq; the name in `request` ends in NUL.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })?;
    Ok(())
}
