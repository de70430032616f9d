//! Virtio devices (specification 1.2): the transport, the device trait, the entropy device, and what all devices share.

pub mod device;
pub(crate) mod event_loop_backend;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
pub mod mmio;
pub mod registers;
pub mod rng;
pub mod state;
#[cfg(test)]
pub(crate) mod testing;
