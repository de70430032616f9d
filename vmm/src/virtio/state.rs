//! What a snapshot keeps of a virtio device: the transport's registers, the queues' positions, the device's own state.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_queue::{Queue, QueueState};

use super::device::VirtQueue;

/// A device behind the virtio-mmio transport, as saved. `S` is the device's own part.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TransportState<S> {
    /// Status register.
    pub status: u32,
    /// Feature selection registers: the device's and the driver's.
    pub features_sel: (u32, u32),
    /// Features the driver accepted.
    pub driver_features: u64,
    /// Queue selection register.
    pub queue_sel: u32,
    /// Interrupts that were not acknowledged.
    pub interrupt_status: u32,
    /// Configuration generation.
    pub config_generation: u32,
    /// The queues, in order.
    pub queues: Vec<SavedQueue>,
    /// The device's own state.
    pub device: S,
}

/// A virtqueue, as saved.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct SavedQueue(#[serde(with = "QueueFields")] QueueState);

/// The fields of [`QueueState`], which does not serialise itself.
#[derive(Deserialize, Serialize)]
#[serde(remote = "QueueState", deny_unknown_fields)]
struct QueueFields {
    max_size: u16,
    next_avail: u16,
    next_used: u16,
    event_idx_enabled: bool,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

impl From<&VirtQueue> for SavedQueue {
    fn from(queue: &VirtQueue) -> Self {
        Self(queue.queue.state())
    }
}

/// Why a saved device cannot be restored.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The device has another number of queues.
    #[error("{saved} queues were saved, the device has {device}")]
    QueueCount {
        /// Queues saved.
        saved: usize,
        /// Queues the device has.
        device: usize,
    },
    /// A queue's fields contradict themselves.
    #[error("the saved queue {0} is not one")]
    Queue(usize, #[source] virtio_queue::Error),
    /// A doorbell cannot be rung.
    #[error("cannot notify queue {0}")]
    Notify(usize, #[source] std::io::Error),
}

/// Gives `queues` the positions of `saved`, and rings the doorbells of those in use.
pub(super) fn restore_queues(queues: &mut [VirtQueue], saved: &[SavedQueue]) -> Result<(), RestoreError> {
    if queues.len() != saved.len() {
        return Err(RestoreError::QueueCount { saved: saved.len(), device: queues.len() });
    }
    for (index, (queue, SavedQueue(state))) in queues.iter_mut().zip(saved).enumerate() {
        queue.queue = Queue::try_from(*state).map_err(|error| RestoreError::Queue(index, error))?;
        if state.ready {
            queue.notify.write(1).map_err(|error| RestoreError::Notify(index, error))?;
        }
    }
    Ok(())
}
