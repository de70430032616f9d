//! Requests to `/dev/random`.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::{Result, check};

/// `RNDADDENTROPY` of the kernel's `linux/random.h`.
const ADD_ENTROPY: libc::Ioctl = 0x4008_5203;

/// `RNDRESEEDCRNG` of the same file.
const RESEED: libc::Ioctl = 0x5207;

/// `struct rand_pool_info` with its bytes.
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    length: libc::c_int,
    bytes: [u8; agent::Seed::LENGTH],
}

/// Adds `bytes` to the kernel's entropy, of which all bits count, and starts its generator anew. `device` is an open `/dev/random`.
pub(crate) fn add_entropy(device: BorrowedFd<'_>, bytes: &[u8; agent::Seed::LENGTH]) -> Result<()> {
    let length = libc::c_int::try_from(bytes.len()).map_err(|_| rustix::io::Errno::INVAL)?;
    let info = PoolInfo { entropy_bits: 8 * length, length, bytes: *bytes };
    // SAFETY: the request reads a `rand_pool_info` with as many bytes as its length says.
    check(unsafe { libc::ioctl(device.as_raw_fd(), ADD_ENTROPY, &raw const info) })?;
    // SAFETY: the request has no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RESEED) })?;
    Ok(())
}
