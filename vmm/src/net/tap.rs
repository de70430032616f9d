//! A tap: the host's end of a network device.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use thiserror::Error;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
};
use vm_memory::VolatileSlice;

use super::header::HEADER_LEN;

/// Why a descriptor cannot be attached as a tap.
#[derive(Debug, Error)]
pub enum TapError {
    /// The descriptor is not a tap.
    #[error("the descriptor is not a tap")]
    NotATap(#[source] io::Error),
    /// The device is a tun, or its frames have no header or another header.
    #[error("the device is not a tap whose frames have a header of {HEADER_LEN} bytes")]
    Mode,
    /// The descriptor cannot be made non-blocking.
    #[error("cannot make the tap non-blocking")]
    NonBlocking(#[source] io::Error),
}

/// Offloads that the driver can accept: the virtio feature and the tap's flag.
const OFFLOADS: [(u32, libc::c_uint); 4] = [
    (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
];

/// A tap (`IFF_TAP`) whose frames have a virtio-net header. Reads and writes never block.
#[derive(Debug)]
pub struct Tap(OwnedFd);

impl Tap {
    /// Takes ownership of the tap `fd` and makes it non-blocking.
    ///
    /// # Errors
    /// `fd` is not a tap, or not in the mode that this device needs.
    pub fn new(fd: OwnedFd) -> Result<Self, TapError> {
        // SAFETY: an ifreq consists of integers and a union of plain data, for which all zeros are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: TUNGETIFF writes an ifreq to `request`, which is one.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) }).map_err(TapError::NotATap)?;
        // SAFETY: the kernel has written the flags, and every value of the integer is valid.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        let mut header: libc::c_int = 0;
        // SAFETY: TUNGETVNETHDRSZ writes an int to `header`, which is one.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETVNETHDRSZ, &raw mut header) })
            .map_err(TapError::NotATap)?;
        let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & wanted != wanted || usize::try_from(header) != Ok(HEADER_LEN) {
            return Err(TapError::Mode);
        }
        rustix::io::ioctl_fionbio(&fd, true).map_err(|error| TapError::NonBlocking(error.into()))?;
        Ok(Self(fd))
    }

    /// A socket that preserves message boundaries, in place of a tap.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn of_socket(fd: OwnedFd) -> Self {
        rustix::io::ioctl_fionbio(&fd, true).expect("a socket");
        Self(fd)
    }

    /// Tells the tap which work on frames the driver does itself, according to its accepted `features`.
    pub(super) fn set_offloads(&self, features: u64) -> io::Result<()> {
        let accepted = OFFLOADS.iter().filter(|(feature, _)| features & (1 << feature) != 0);
        let flags = accepted.fold(0, |flags, (_, flag)| flags | flag);
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
    }

    /// Reads a frame with its header. Returns its length in bytes, or `WouldBlock` if there is none.
    pub(super) fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, frame)?)
    }

    /// Writes a frame with its header from guest memory, without copying it first.
    pub(super) fn write(&self, frame: &[VolatileSlice<'_>]) -> io::Result<()> {
        let guards: Vec<_> = frame.iter().map(VolatileSlice::ptr_guard).collect();
        let vectors: Vec<libc::iovec> = guards
            .iter()
            .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast_mut().cast(), iov_len: guard.len() })
            .collect();
        let count = libc::c_int::try_from(vectors.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the vectors describe guest memory that `frame` borrows, which is valid for reads. The kernel allows
        // the contents to change meanwhile.
        let written = unsafe { libc::writev(self.0.as_raw_fd(), vectors.as_ptr(), count) };
        if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn descriptors_that_are_not_taps_are_rejected() {
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(Tap::new(file.into()), Err(TapError::NotATap(_))));
        let (socket, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
        assert!(matches!(Tap::new(socket.into()), Err(TapError::NotATap(_))));
    }
}
