//! Loop devices of the guest. The kernel has none initially; they are added when a container gets a device node of one.

use std::os::fd::AsFd;

use rustix::fs::{FileType, major, minor};
use rustix::io::Errno;

use super::devices;
use crate::error::Error;
use crate::sys;

/// Major number of loop devices.
const MAJOR: u32 = 7;

/// Number of loop devices in a complete `/dev`: the kernel's common default.
pub(crate) const DEFAULT_COUNT: u32 = 8;

/// Adds the device behind a node of this kind and number if it is a loop device.
pub(crate) fn add_for_node(kind: FileType, number: u64) -> Result<(), Error> {
    match kind == FileType::BlockDevice && major(number) == MAJOR {
        true => add(minor(number)),
        false => Ok(()),
    }
}

/// Adds loop device `number` unless it exists.
pub(crate) fn add(number: u32) -> Result<(), Error> {
    let control = devices::make_and_open("/dev/loop-control", 10, 237)?;
    match sys::loop_device::add(control.as_fd(), number) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(Error::at(format!("add loop device {number}"))(error)),
    }
}
