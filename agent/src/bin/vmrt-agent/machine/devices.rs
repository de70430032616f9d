//! Devices that the agent itself uses.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::Error;

/// Makes a character device, if it does not exist, and opens it.
pub(crate) fn make_and_open(path: &str, major: u32, minor: u32) -> Result<OwnedFd, Error> {
    let number = rustix::fs::makedev(major, minor);
    match rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), number) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(Error::on("make device", path)(error)),
    }
    rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(Error::on("open", path))
}
