//! The saved state of a virtio device: the transport's registers, the queues and the device's own state.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_queue::{Queue, QueueState};

use super::device::VirtQueue;

/// The saved state of a device behind the virtio-mmio transport. `S` is the device's own state.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TransportState<S> {
    /// Status register.
    pub status: u32,
    /// Feature selection registers: the device's, then the driver's.
    pub features_sel: (u32, u32),
    /// Features the driver accepted.
    pub driver_features: u64,
    /// Queue selection register.
    pub queue_sel: u32,
    /// The interrupt status register.
    pub interrupt_status: u32,
    /// Configuration generation.
    pub config_generation: u32,
    /// The queues, in order.
    pub queues: Vec<SavedQueue>,
    /// The device's own state.
    pub device: S,
}

/// The saved state of a virtqueue.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct SavedQueue(#[serde(with = "QueueFields")] QueueState);

/// The fields of [`QueueState`], which does not implement serde's traits.
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
    /// A queue's saved fields contradict each other.
    #[error("the saved queue {0} is not valid")]
    Queue(usize, #[source] virtio_queue::Error),
    /// A queue's notification cannot be written.
    #[error("cannot notify queue {0}")]
    Notify(usize, #[source] std::io::Error),
}

/// Gives `queues` the `saved` state, and notifies the device of those that are ready.
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
