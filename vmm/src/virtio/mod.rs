//! Virtio devices (specification 1.2) and what they share.

pub mod device;
pub mod mmio;
pub mod registers;
pub mod rng;
pub mod state;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod work;
