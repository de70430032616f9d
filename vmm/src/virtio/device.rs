//! The [`VirtioDevice`] trait, and what the transport gives a device when it activates it.
//!
//! ```text
//!            activate(queues)
//!  inactive ─────────────────► active      the device owns its queues
//!     ▲                          │
//!     └──────────────────────────┘
//!          deactivate() -> queues          for reset, snapshot and shutdown
//! ```
//!
//! The transport owns feature negotiation, the status register and the queue registers. While the device owns the
//! queues, the guest cannot change their registers. The transport saves the queues, the status and the features. A
//! device saves only the state of its backend ([`VirtioDevice::State`]), while it is inactive. A device is restored by
//! its constructor with `Some(state)`. `testing.rs` holds the test of this life cycle, which every device passes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::registers::{RegisterPage, register};
use crate::arch::Memory;

/// A virtqueue and its notification.
#[derive(Debug)]
pub struct VirtQueue {
    /// The virtqueue.
    pub queue: Queue,
    /// Readable after the driver notified the device (`QueueNotify`). KVM writes it (ioeventfd).
    pub notify: EventFd,
}

impl VirtQueue {
    /// A queue of at most `size` descriptors that the driver has not set up.
    ///
    /// # Panics
    /// `size` is not a power of two up to 32768, which is what virtio allows.
    #[must_use]
    pub fn new(size: u16, notify: EventFd) -> Self {
        Self { queue: Queue::new(size).expect("the size of a virtqueue is a power of two"), notify }
    }

    /// Resets the queue's registers and clears its notification.
    pub(super) fn reset(&mut self) {
        self.queue.reset();
        self.clear_notification();
    }

    /// Clears the driver's notifications so far. From here on, `notify` is readable only after a new one.
    pub fn clear_notification(&self) {
        // The read fails if the driver has not notified the device.
        let _ = self.notify.read();
    }
}

/// Takes the next chain off the available ring of `queue`. `None` means that there is none, and that the driver notifies
/// the device of the next one.
pub(crate) fn next_chain<'m>(queue: &mut Queue, memory: &'m Memory) -> Option<DescriptorChain<&'m Memory>> {
    queue.pop_descriptor_chain(memory).or_else(|| match queue.enable_notification(memory) {
        // The driver added a chain just before notifications were enabled. This looks only once more: with an invalid
        // available index there always seems to be another chain.
        Ok(true) => queue.pop_descriptor_chain(memory),
        _ => None,
    })
}

/// A device's interrupt: an irqfd, and the registers that give its reason (virtio 1.2, 4.2.2).
///
/// The interrupt status register always has the bit for used buffers set, so the driver always looks for used buffers.
/// An acknowledgement of that bit has nothing to clear and needs no exit; otherwise every interrupt would need one.
#[derive(Clone, Debug)]
pub struct Interrupt {
    registers: RegisterPage,
    line: Arc<EventFd>,
}

impl Interrupt {
    /// An interrupt that stores its reason in `registers` and writes `line`.
    #[must_use]
    pub fn new(registers: RegisterPage, line: Arc<EventFd>) -> Self {
        registers.store(register::INTERRUPT_STATUS, VIRTIO_MMIO_INT_VRING);
        Self { registers, line }
    }

    /// The device's register page.
    pub(super) fn registers(&self) -> RegisterPage {
        self.registers
    }

    /// Sends a used buffer notification.
    pub fn notify_used_buffers(&self) -> std::io::Result<()> {
        self.line.write(1)
    }

    /// Stores `config` as the device configuration space without a notification to the driver.
    pub fn set_config(&self, config: &[u8]) {
        self.registers.store_config(config);
    }

    /// Stores `config` as the device configuration space and sends a configuration change notification. `config`
    /// differs from the previous one in at most one field.
    pub fn notify_config_change(&self, config: &[u8]) -> std::io::Result<()> {
        self.registers.store_config(config);
        self.registers.at(register::CONFIG_GENERATION).fetch_add(1, Ordering::SeqCst);
        self.notify_status_change()
    }

    /// Notifies the driver that the status register has changed: the device needs a reset.
    pub(super) fn notify_status_change(&self) -> std::io::Result<()> {
        self.registers.at(register::INTERRUPT_STATUS).fetch_or(VIRTIO_MMIO_INT_CONFIG, Ordering::SeqCst);
        self.line.write(1)
    }

    /// The interrupt status register.
    pub(super) fn status(&self) -> u32 {
        self.registers.at(register::INTERRUPT_STATUS).load(Ordering::SeqCst)
    }

    /// The driver acknowledges `bits`.
    pub(super) fn acknowledge(&self, bits: u32) {
        let seen = bits & VIRTIO_MMIO_INT_CONFIG;
        self.registers.at(register::INTERRUPT_STATUS).fetch_and(!seen, Ordering::SeqCst);
    }

    /// The configuration generation. It changes whenever the configuration space does, so that the driver detects an
    /// inconsistent read.
    pub(super) fn generation(&self) -> u32 {
        self.registers.at(register::CONFIG_GENERATION).load(Ordering::SeqCst)
    }

    pub(super) fn restore(&self, status: u32, generation: u32) {
        self.registers.store(register::INTERRUPT_STATUS, status | VIRTIO_MMIO_INT_VRING);
        self.registers.store(register::CONFIG_GENERATION, generation);
    }
}

/// What a device gets when the driver sets `DRIVER_OK`.
#[derive(Debug)]
pub struct Activation {
    /// The guest's memory.
    pub memory: Memory,
    /// The device's queues, in the order of [`VirtioDevice::queue_sizes`].
    pub queues: Vec<VirtQueue>,
    /// The device's interrupt.
    pub interrupt: Interrupt,
    /// Features the driver accepted.
    pub features: u64,
}

/// Why a device could not be activated.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// A system call failed.
    #[error("cannot {0}")]
    System(&'static str, #[source] std::io::Error),
    /// The driver left a queue the device needs disabled.
    #[error("queue {0} is not enabled")]
    QueueDisabled(usize),
    /// The driver put a queue outside guest memory.
    #[error("queue {0} does not lie in guest memory")]
    QueueInvalid(usize),
    /// The event loop does not accept the device's handler.
    #[error("cannot move the device's queues to the event loop")]
    EventLoop(#[from] event_manager::Error),
}

/// A virtio device, independent of its transport.
pub trait VirtioDevice: Send {
    /// What a snapshot saves of the device's backend.
    type State: Serialize + DeserializeOwned;

    /// Device type (virtio 1.2, section 5).
    fn device_type(&self) -> u32;

    /// Features the device offers, `VIRTIO_F_VERSION_1` included.
    fn features(&self) -> u64;

    /// The largest size of each queue. Their number is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// The device configuration space. Bytes past its end read as zero. While the device is active, it reports changes
    /// with [`Interrupt::notify_config_change`]. The driver cannot write to it.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes the queues and starts to serve them.
    ///
    /// # Errors
    /// The device stays inactive and drops the queues. The transport sets `DEVICE_NEEDS_RESET`.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops serving the queues and returns them in their order. The result is empty if the device was inactive. After
    /// the return, the device no longer accesses guest memory.
    fn deactivate(&mut self) -> Vec<VirtQueue>;

    /// The backend's state. The transport calls this while the device is inactive.
    fn save(&self) -> Self::State;
}
