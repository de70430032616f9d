//! The guest's random numbers.

use std::os::fd::AsFd;

use agent::Seed;

use super::devices;
use crate::error::Error;
use crate::sys::random;

/// The device and its numbers.
const DEVICE: (&str, u32, u32) = ("/dev/random", 1, 8);

/// Starts the kernel's generator of random numbers anew, with `seed` in addition to what it has.
pub(crate) fn seed(seed: &Seed) -> Result<(), Error> {
    let (path, major, minor) = DEVICE;
    let device = devices::make_and_open(path, major, minor)?;
    random::add_entropy(device.as_fd(), seed.bytes()).map_err(Error::on("seed", path))
}
