//! Tap devices: the VMM's end of an interface.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

/// Name template of taps: the kernel replaces `%d` by the first free number.
const NAME: &[u8] = b"vmrt%d";

/// Prefix of the names of taps.
pub(super) const PREFIX: &str = "vmrt";

/// Length of the virtio-net header before each frame, in bytes (virtio 1.2, 5.1.6).
const HEADER_LEN: libc::c_int = 12;

/// A tap in the namespace of the thread that created it. The kernel removes it when its last descriptor is closed.
pub(super) struct Tap {
    pub(super) fd: OwnedFd,
    pub(super) name: String,
    pub(super) index: u32,
}

impl Tap {
    /// Creates a tap that is down, from the file that [`open`] returns.
    pub(super) fn create(file: File) -> io::Result<Self> {
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let mut request = request(NAME);
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
        // SAFETY: TUNSETIFF reads and writes an ifreq, and `request` is one with a name that ends in NUL.
        Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
        let header = HEADER_LEN;
        // SAFETY: TUNSETVNETHDRSZ reads an int, and `header` is one.
        Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) })?;
        let name: Vec<u8> = request.ifr_name.iter().map(|byte| byte.cast_unsigned()).take_while(|b| *b != 0).collect();
        let name = String::from_utf8(name).map_err(io::Error::other)?;
        Ok(Self { index: index(&name)?, name, fd: file.into() })
    }
}

/// Opens the tun device in the namespace of the calling thread.
pub(super) fn open() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/net/tun")
}

fn index(name: &str) -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex(name)?)
}

fn request(name: &[u8]) -> libc::ifreq {
    // SAFETY: an ifreq consists of integers and a union of plain data, for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    request
}
