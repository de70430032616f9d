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
use std::sync::atomic::{AtomicU32, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// The guest's memory, as devices see it.
pub type Memory = GuestMemoryMmap<()>;

/// A virtqueue and the descriptor its doorbell is tied to (ioeventfd).
#[derive(Debug)]
pub struct VirtQueue {
    /// The virtqueue.
    pub queue: Queue,
    /// Readable when the driver notified.
    pub kick: EventFd,
}

impl VirtQueue {
    /// A queue of at most `size` descriptors that no driver has set up.
    ///
    /// # Panics
    /// `size` is not a power of two up to 32768: a device asked for what virtio does not have.
    #[must_use]
    pub fn new(size: u16, kick: EventFd) -> Self {
        Self { queue: Queue::new(size).expect("the size of a virtqueue is a power of two"), kick }
    }

    /// Forgets what the driver set up, and that it notified.
    pub(super) fn reset(&mut self) {
        self.queue.reset();
        self.drain();
    }

    /// Takes note of the driver's notifications so far: from here on, `kick` is readable only when a new one comes.
    pub fn drain(&self) {
        // It has nothing to read where the driver did not notify.
        let _ = self.kick.read();
    }
}

/// A device's interrupt line: an irqfd and the interrupt status register (virtio 1.2, 4.2.2).
#[derive(Clone, Debug)]
pub struct Interrupt {
    status: Arc<AtomicU32>,
    generation: Arc<AtomicU32>,
    line: Arc<EventFd>,
}

impl Interrupt {
    /// An interrupt that sets bits in `status` and then writes `line`.
    #[must_use]
    pub fn new(status: Arc<AtomicU32>, line: Arc<EventFd>) -> Self {
        Self { status, generation: Arc::default(), line }
    }

    /// Tells the driver that a queue has used buffers.
    pub fn used_buffers(&self) -> std::io::Result<()> {
        self.raise(VIRTIO_MMIO_INT_VRING)
    }

    /// Tells the driver that the device's configuration changed.
    pub fn config_changed(&self) -> std::io::Result<()> {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(VIRTIO_MMIO_INT_CONFIG)
    }

    /// What was not acknowledged yet.
    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The driver has seen `bits`.
    pub(super) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Changes whenever the device's configuration did, so that the driver sees that it read half of each.
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    pub(super) fn restore(&self, status: u32, generation: u32) {
        self.status.store(status, Ordering::SeqCst);
        self.generation.store(generation, Ordering::SeqCst);
    }

    /// A bit that is still set was not acknowledged yet: the driver looks at the queues after it did, so a second
    /// edge would only cost it another interrupt.
    fn raise(&self, bit: u32) -> std::io::Result<()> {
        if self.status.fetch_or(bit, Ordering::SeqCst) & bit == 0 { self.line.write(1) } else { Ok(()) }
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

/// Reads the device configuration space `config`; bytes past its end read as zero.
pub(crate) fn read_config(config: &[u8], offset: u64, data: &mut [u8]) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let source = config.get(start..).unwrap_or_default();
    data.fill(0);
    let length = source.len().min(data.len());
    data[..length].copy_from_slice(&source[..length]);
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

    /// Reads the device configuration space; bytes past its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the device configuration space. Few devices have a writable one.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Takes the queues and begins to work.
    ///
    /// # Errors
    /// The device stays inactive, and the transport sets `DEVICE_NEEDS_RESET`; the queues are dropped.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops working and hands the queues back, as they were given; empty where the device was inactive. When this
    /// returns, nothing touches guest memory on the device's behalf any more.
    fn quiesce(&mut self) -> Vec<VirtQueue>;

    /// The backend's state. Called while the device is inactive.
    fn save(&self) -> Self::State;
}
