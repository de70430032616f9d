//! The [`VirtioDevice`] implementation.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use virtio_queue::QueueT;

use super::blocks::PluggedRun;
use super::handler::Handler;
use super::resizer::{Pluggable, SharedSizes};
use crate::event_loop::LoopHandle;
use crate::virtio::device::{ActivateError, Activation, VirtQueue, VirtioDevice};
use crate::virtio::event_loop_backend::EventLoopBackend;

/// Descriptors of the queue. The driver sends one request at a time.
const QUEUE_SIZES: [u16; 1] = [16];

/// `VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE`: the driver does not access unplugged blocks.
const UNPLUGGED_INACCESSIBLE: u32 = 1;

/// The saved state of the device.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MemState {
    /// Bytes of the region that the driver is requested to plug.
    pub(super) requested: u64,
    pub(super) plugged: Vec<PluggedRun>,
}

/// The memory device. Its queue is served in the event loop.
pub struct Mem {
    sizes: Arc<SharedSizes>,
    backend: EventLoopBackend<Pluggable, Handler>,
}

impl Mem {
    /// The device of `pluggable`, served by `event_loop`. With a state, the saved blocks are plugged.
    #[must_use]
    pub fn new(mut pluggable: Pluggable, event_loop: LoopHandle, state: Option<&MemState>) -> Self {
        if let Some(state) = state {
            pluggable.restore(state);
        }
        Self { sizes: Arc::clone(&pluggable.sizes), backend: EventLoopBackend::new(event_loop, pluggable) }
    }
}

impl VirtioDevice for Mem {
    type State = MemState;

    fn device_type(&self) -> u32 {
        VIRTIO_ID_MEM
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << UNPLUGGED_INACCESSIBLE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Vec<u8> {
        self.sizes.config()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if !activation.queues.first().is_some_and(|queue| queue.queue.ready()) {
            return Err(ActivateError::QueueDisabled(0));
        }
        self.backend.activate(|pluggable| Handler::new(activation, pluggable))
    }

    fn deactivate(&mut self) -> Vec<VirtQueue> {
        self.backend.deactivate("memory", Handler::into_parts)
    }

    fn save(&self) -> MemState {
        self.backend.inactive().map(Pluggable::save).unwrap_or_default()
    }
}
