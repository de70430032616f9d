//! What every virtio device is: the [`VirtioDevice`] trait.
//!
//! ```text
//!            activate(queues)
//!  inactive ─────────────────► active      the device owns its queues
//!     ▲                          │
//!     └──────────────────────────┘
//!            quiesce() -> queues           for reset, snapshot and shutdown
//! ```
//!
//! The transport owns feature negotiation, the status register and the queue registers; the guest cannot reach the
//! queues while the device owns them. A device saves only its backend's state ([`VirtioDevice::State`]), while it is
//! inactive; queues, status and features are the transport's to save. Restoring is the device's constructor with
//! `Some(state)`. `testing.rs` holds the test of this life cycle that every device passes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::registers::{RegisterPage, register};

/// The guest's memory, as devices see it.
pub type Memory = GuestMemoryMmap<()>;

/// A virtqueue and the descriptor its doorbell is tied to (ioeventfd).
#[derive(Debug)]
pub struct VirtQueue {
    /// The virtqueue.
    pub queue: Queue,
    /// Readable when the driver notified.
    pub notify: EventFd,
}

impl VirtQueue {
    /// A queue of at most `size` descriptors that no driver has set up.
    ///
    /// # Panics
    /// `size` is not a power of two up to 32768: a device asked for what virtio does not have.
    #[must_use]
    pub fn new(size: u16, notify: EventFd) -> Self {
        Self { queue: Queue::new(size).expect("the size of a virtqueue is a power of two"), notify }
    }

    /// Forgets what the driver set up, and that it notified.
    pub(super) fn reset(&mut self) {
        self.queue.reset();
        self.clear_notification();
    }

    /// Takes note of the driver's notifications so far: from here on, `kick` is readable only when a new one comes.
    pub fn clear_notification(&self) {
        // It has nothing to read where the driver did not notify.
        let _ = self.notify.read();
    }
}

/// A device's interrupt line: an irqfd, and the registers that tell why it was interrupted (virtio 1.2, 4.2.2).
///
/// The interrupt status register says at all times that buffers were used, and the driver always looks. So there is nothing
/// to clear when it acknowledges that: no exit, where every interrupt would need one.
#[derive(Clone, Debug)]
pub struct Interrupt {
    registers: RegisterPage,
    line: Arc<EventFd>,
}

impl Interrupt {
    /// An interrupt that says in `registers` why, and writes `line`.
    #[must_use]
    pub fn new(registers: RegisterPage, line: Arc<EventFd>) -> Self {
        registers.store(register::INTERRUPT_STATUS, VIRTIO_MMIO_INT_VRING);
        Self { registers, line }
    }

    /// Where it says why.
    pub(super) fn registers(&self) -> RegisterPage {
        self.registers
    }

    /// Tells the driver that a queue has used buffers.
    pub fn notify_used_buffers(&self) -> std::io::Result<()> {
        self.line.write(1)
    }

    /// Has the device's configuration space say `config`, of which the driver need not be told.
    pub fn set_config(&self, config: &[u8]) {
        self.registers.store_config(config);
    }

    /// Tells the driver that the device's configuration space is `config` from now on. At most one field changes.
    pub fn notify_config_change(&self, config: &[u8]) -> std::io::Result<()> {
        self.registers.store_config(config);
        self.registers.at(register::CONFIG_GENERATION).fetch_add(1, Ordering::SeqCst);
        self.notify_status_change()
    }

    /// Tells the driver that the device needs a reset.
    pub(super) fn notify_status_change(&self) -> std::io::Result<()> {
        self.registers.at(register::INTERRUPT_STATUS).fetch_or(VIRTIO_MMIO_INT_CONFIG, Ordering::SeqCst);
        self.line.write(1)
    }

    /// Why the driver is interrupted, as it reads it.
    pub(super) fn status(&self) -> u32 {
        self.registers.at(register::INTERRUPT_STATUS).load(Ordering::SeqCst)
    }

    /// The driver has seen `bits`.
    pub(super) fn acknowledge(&self, bits: u32) {
        let seen = bits & VIRTIO_MMIO_INT_CONFIG;
        self.registers.at(register::INTERRUPT_STATUS).fetch_and(!seen, Ordering::SeqCst);
    }

    /// Changes whenever the device's configuration did, so that the driver sees that it read half of each.
    pub(super) fn generation(&self) -> u32 {
        self.registers.at(register::CONFIG_GENERATION).load(Ordering::SeqCst)
    }

    pub(super) fn restore(&self, status: u32, generation: u32) {
        self.registers.store(register::INTERRUPT_STATUS, status | VIRTIO_MMIO_INT_VRING);
        self.registers.store(register::CONFIG_GENERATION, generation);
    }
}

/// Everything a device gets when the driver set `DRIVER_OK`.
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
    /// The driver put a queue where there is no memory.
    #[error("queue {0} does not lie in guest memory")]
    QueueInvalid(usize),
    /// The event loop does not take the device's work.
    #[error("cannot hand the device's queues to the event loop")]
    EventLoop(#[from] event_manager::Error),
}

/// A virtio device behind any transport.
pub trait VirtioDevice: Send {
    /// What a snapshot keeps of the device's backend.
    type State: Serialize + DeserializeOwned;

    /// Device type (virtio 1.2, section 5).
    fn device_type(&self) -> u32;

    /// Features the device offers, `VIRTIO_F_VERSION_1` included.
    fn features(&self) -> u64;

    /// Largest size of each queue; their number is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// The device configuration space; bytes past its end read as zero. While the device is active, changes are told with
    /// [`Interrupt::notify_config_change`]. Drivers write none of it.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes the queues and begins to work.
    ///
    /// # Errors
    /// The device stays inactive, and the transport sets `DEVICE_NEEDS_RESET`; the queues are dropped.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops working and hands the queues back, as they were given; empty where the device was inactive. When this
    /// returns, nothing touches guest memory on the device's behalf any more.
    fn deactivate(&mut self) -> Vec<VirtQueue>;

    /// The backend's state. Called while the device is inactive.
    fn save(&self) -> Self::State;
}
