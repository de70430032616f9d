//! Loop devices of the guest's kernel, which has none from the start: they come when a container is given a node of one.

use std::os::fd::AsFd;

use rustix::fs::{FileType, major, minor};
use rustix::io::Errno;

use crate::error::Error;
use crate::{machine, sys};

/// Major number of loop devices.
pub(crate) const MAJOR: u32 = 7;

/// How many there are in a whole `/dev`: as many as kernels usually have from the start.
pub(crate) const USUAL: u32 = 8;

/// Adds the device that a node of this kind and number is of, if it is a loop device and not there yet.
pub(crate) fn add_if(kind: FileType, number: u64) -> Result<(), Error> {
    match kind == FileType::BlockDevice && major(number) == MAJOR {
        true => add(minor(number)),
        false => Ok(()),
    }
}

/// Adds loop device `number`, if it is not there yet.
pub(crate) fn add(number: u32) -> Result<(), Error> {
    /// `LOOP_CTL_ADD` of the kernel's `linux/loop.h`.
    const ADD: libc::Ioctl = 0x4c80;
    let control = machine::device("/dev/loop-control", 10, 237)?;
    match sys::ioctl_number(control.as_fd(), ADD, number) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(Error::at(format!("add loop device {number}"))(error)),
    }
}
