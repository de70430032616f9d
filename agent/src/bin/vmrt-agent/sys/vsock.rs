//! Connections to ports of the host.

use std::ffi::c_int;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use vsock::{SockaddrLike, VMADDR_CID_HOST, VsockAddr};

use super::{Result, check};

/// Seconds within which the VMM has to accept a connection. The kernel's default of two seconds is too short for a host
/// that is busy with writes to its disk. The host itself detects a VMM that does not answer at all.
const CONNECT_TIMEOUT: i64 = 60;

/// `SO_VM_SOCKETS_CONNECT_TIMEOUT` of `linux/vm_sockets.h`, which takes a `timeval`.
const VSOCK_CONNECT_TIMEOUT: c_int = 6;

/// Connects to `port` of the host and sends `first_bytes`. Blocks until the connection is established and the bytes are
/// buffered; the socket itself is non-blocking.
pub(crate) fn connect_to_host(port: u32, first_bytes: &[u8]) -> Result<OwnedFd> {
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    connect(&socket, &VsockAddr::new(VMADDR_CID_HOST, port), CONNECT_TIMEOUT)?;
    let mut unsent = first_bytes;
    while !unsent.is_empty() {
        let sent = rustix::io::retry_on_intr(|| rustix::io::write(&socket, unsent))?;
        unsent = &unsent[sent..];
    }
    rustix::io::ioctl_fionbio(&socket, true)?;
    Ok(socket)
}

/// Connects a blocking vsock socket. Fails with `ETIMEDOUT` after `seconds`.
fn connect(socket: &OwnedFd, address: &VsockAddr, seconds: i64) -> Result<()> {
    let limit = libc::timeval { tv_sec: seconds, tv_usec: 0 };
    let size = libc::socklen_t::try_from(size_of::<libc::timeval>()).map_err(|_| Errno::INVAL)?;
    let fd = socket.as_raw_fd();
    // SAFETY: `limit` is a timeval of the given size, which the kernel reads only during the call.
    check(unsafe { libc::setsockopt(fd, libc::AF_VSOCK, VSOCK_CONNECT_TIMEOUT, (&raw const limit).cast(), size) })?;
    // SAFETY: the address is valid for its own length and read only during the call.
    check(unsafe { libc::connect(fd, address.as_ptr(), address.len()) })?;
    Ok(())
}
