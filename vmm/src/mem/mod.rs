//! The memory device (virtio 1.2, section 5.15). The guest gets and returns memory while it runs.
//!
//! Above the memory that the guest boots with is a *region*, which this device divides into blocks of [`BLOCK_SIZE`]
//! bytes. The sandbox requests a size. The driver gets a configuration change notification, and plugs or unplugs blocks
//! until it has that size. An unplugged block takes no memory of the host: its contents are discarded.
//!
//! ```text
//! Resizer::request ──event──► Handler (event loop) ──config change──► driver
//! Resizer::size  ◄──event──── Handler              ◄──PLUG, UNPLUG──── driver
//! ```
//!
//! The region is part of the guest memory that devices access from the start, but they reach plugged blocks only
//! ([`crate::arch::MemoryRegion`]). Each plugged block is a KVM memory slot, so vCPUs reach no others either.

mod blocks;
mod device;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod handler;
mod region;
mod request;
mod resizer;
#[cfg(test)]
mod tests;

pub use device::{Mem, MemState};
pub use region::{Region, RegionError};
pub use resizer::{Pluggable, ResizeError, Resizer, SetBlock, pluggable};

/// Size of a block in bytes: a huge page, the unit in which both kernels manage memory.
pub const BLOCK_SIZE: u64 = 2 << 20;
