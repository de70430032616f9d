//! The memory device (virtio 1.2, section 5.15): memory that the guest gets, and gives back, while it runs.
//!
//! Behind the memory a guest boots with lies a *region*, which belongs to this device in blocks of [`BLOCK_SIZE`]. The
//! sandbox asks for a size; a configuration change tells the driver, which plugs and unplugs blocks until it has that much.
//! A block that is not plugged takes no memory of the host: what was in it is dropped.
//!
//! ```text
//! Resizer::request ──event──► Handler (event loop) ──config change──► driver
//! Resizer::size  ◄──event──── Handler              ◄──PLUG, UNPLUG──── driver
//! ```
//!
//! The region is part of guest memory for every device from the start. KVM is told of it when memory is first asked for.

mod blocks;
mod device;
mod handler;
mod region;
mod request;
mod resizer;
#[cfg(test)]
mod tests;

pub use device::{Mem, MemState};
pub use region::{Region, RegionError};
pub use resizer::{Connect, Pluggable, ResizeError, Resizer, pluggable};

/// What the driver plugs and unplugs: a huge page, which is what both kernels keep memory in.
pub const BLOCK_SIZE: u64 = 2 << 20;
