//! What the fuzzing targets of virtio devices share: the input of a run, and a driver that violates the protocol.

mod chains;
mod driver;
mod input;
mod registers;

pub(crate) use chains::chains;
pub(crate) use driver::RawDriver;
pub(crate) use input::Input;
pub(crate) use registers::{drive_registers, restore};
