//! The network device (virtio 1.2, section 5.1): *slots* in the guest that taps are attached to while it runs.
//!
//! The machine has no bus a device could be plugged into, so every network device it may ever need is there from the
//! start. A slot without a tap is inert: its link is down, and it costs the guest a driver and nothing else. When the
//! sandbox attaches a tap, the link comes up and a configuration change interrupt tells the driver.
//!
//! ```text
//! SlotHandle::attach(tap) ──channel, event──► Handler (event loop) ◄──frames──► tap ◄──tc──► interface of the host
//! ```
//!
//! A device shows the address [`agent::slot_address`] of its slot, by which the agent finds it; the agent then gives it
//! the name and address of the host's interface.

mod chain;
mod device;
mod handler;
mod header;
mod slot;
mod tap;
#[cfg(test)]
mod tests;
mod used_ring;

pub use device::{Net, NetState};
pub use slot::{AttachError, Slot, SlotHandle, Slots, slot};
pub use tap::{Tap, TapError};

/// Most network devices of a guest: what is left of the interrupt lines serves other devices.
pub const MAX_SLOTS: u8 = 8;
