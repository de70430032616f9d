//! The [`VirtioDevice`] implementation.

use std::io;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

use super::backend::Backend;
use super::handler::{EVENT, Handler, RX, TX};
use super::{GUEST_CID, Ports};
use crate::event_loop::LoopHandle;
use crate::virtio::device::{ActivateError, Activation, VirtQueue, VirtioDevice};
use crate::virtio::event_loop_backend::EventLoopBackend;

/// `VIRTIO_VSOCK_F_STREAM` (virtio 1.2, 5.10.3).
const F_STREAM: u32 = 0;

/// Packets per queue. Linux fills the receive queue with 4 KiB buffers, which use the guest's memory.
const QUEUE_SIZES: [u16; 3] = [128, 128, 8];

/// The saved state of the device, which is empty. Connections use descriptors of this process and end with it; a
/// restored guest gets a transport reset event.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VsockState {}

/// The virtio-vsock device.
pub struct Vsock {
    backend: EventLoopBackend<Backend, Handler>,
    transport_reset_due: bool,
}

impl Vsock {
    /// A device whose guest may connect to `ports`. With a state, the guest gets a transport reset event.
    ///
    /// # Errors
    /// The epoll descriptor cannot be created.
    pub fn new(ports: Ports, event_loop: LoopHandle, state: Option<VsockState>) -> io::Result<Self> {
        let backend = EventLoopBackend::new(event_loop, Backend::new(ports)?);
        Ok(Self { backend, transport_reset_due: state.is_some() })
    }
}

impl VirtioDevice for Vsock {
    type State = VsockState;

    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << F_STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Vec<u8> {
        GUEST_CID.to_le_bytes().into()
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        for index in [RX, TX, EVENT] {
            let Some(queue) = activation.queues.get_mut(index).map(|queue| &mut queue.queue) else {
                return Err(ActivateError::QueueDisabled(index));
            };
            if !queue.ready() {
                return Err(ActivateError::QueueDisabled(index));
            }
            queue.set_event_idx(activation.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        }
        let transport_reset_due = self.transport_reset_due;
        self.backend.activate(|backend| Handler::new(activation, backend, transport_reset_due))
    }

    fn deactivate(&mut self) -> Vec<VirtQueue> {
        let transport_reset_due = &mut self.transport_reset_due;
        self.backend.deactivate("vsock", |handler| {
            let (queues, backend, still_due) = handler.into_parts();
            *transport_reset_due = still_due;
            (queues, backend)
        })
    }

    fn save(&self) -> VsockState {
        VsockState {}
    }
}
