//! The network device (virtio 1.2, section 5.1). Taps are attached to the guest's *slots* while it runs.
//!
//! The machine has no bus for hot-plugging, so all its network devices exist from the start. A slot without a tap is
//! inert: its link is down. When the sandbox attaches a tap, the link goes up, and the driver gets a configuration
//! change notification.
//!
//! ```text
//! SlotHandle::attach(tap) ──channel, event──► Handler (event loop) ◄──frames──► tap ◄──tc──► interface of the host
//! ```
//!
//! A device has the MAC address [`agent::slot_address`] of its slot, by which the agent finds it. The agent then gives
//! the interface the name and the MAC address of the host's interface.

mod chain;
mod device;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
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

/// The most network devices of a guest. The other interrupt lines belong to other devices.
pub const MAX_SLOTS: u8 = 8;
