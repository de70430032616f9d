//! The device as the transport sees it.

use std::io;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

use super::backend::Backend;
use super::handler::{EVENT, Handler, RX, TX};
use super::{GUEST_CID, Ports};
use crate::event_loop::{LoopHandle, Registration};
use crate::virtio::device::{ActivateError, Activation, VirtQueue, VirtioDevice};

/// `VIRTIO_VSOCK_F_STREAM` (virtio 1.2, 5.10.3).
const F_STREAM: u32 = 0;

/// Packets that can wait in a queue. Linux fills the receive queue with 4 KiB buffers, which the guest pays for.
const QUEUE_SIZES: [u16; 3] = [128, 128, 8];

/// What a snapshot keeps of the device: nothing. Connections lead to descriptors of this process and end with it; a
/// guest that is restored is told so.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VsockState {}

/// The virtio-vsock device.
pub struct Vsock {
    event_loop: LoopHandle,
    work: Work,
    reset_due: bool,
}

enum Work {
    /// Boxed, since it is moved about.
    Inactive(Box<Backend>),
    Active(Registration<Handler>),
    /// The event loop failed while it held the backend.
    Lost,
}

impl Vsock {
    /// A device whose guest may connect to `ports`. With a state, its guest's earlier connections are reset.
    ///
    /// # Errors
    /// No epoll descriptor can be made.
    pub fn new(ports: Ports, event_loop: LoopHandle, state: Option<VsockState>) -> io::Result<Self> {
        let work = Work::Inactive(Box::new(Backend::new(ports)?));
        Ok(Self { event_loop, work, reset_due: state.is_some() })
    }

    fn handler(&mut self, mut activation: Activation) -> Result<Handler, ActivateError> {
        for index in [RX, TX, EVENT] {
            let Some(queue) = activation.queues.get_mut(index).map(|queue| &mut queue.queue) else {
                return Err(ActivateError::QueueDisabled(index));
            };
            if !queue.ready() {
                return Err(ActivateError::QueueDisabled(index));
            }
            queue.set_event_idx(activation.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        }
        match std::mem::replace(&mut self.work, Work::Lost) {
            Work::Inactive(backend) => Ok(Handler::new(activation, *backend, self.reset_due)),
            other => {
                self.work = other;
                Err(ActivateError::System("activate a device twice", io::ErrorKind::ResourceBusy.into()))
            }
        }
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

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = GUEST_CID.to_le_bytes();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = config.get(start.saturating_add(index)).copied().unwrap_or(0);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let handler = self.handler(activation)?;
        self.work = Work::Active(self.event_loop.add(handler)?);
        Ok(())
    }

    fn quiesce(&mut self) -> Vec<VirtQueue> {
        match std::mem::replace(&mut self.work, Work::Lost) {
            Work::Active(registration) => match self.event_loop.remove(registration) {
                Ok(handler) => {
                    let (queues, backend, reset_due) = handler.into_parts();
                    self.work = Work::Inactive(Box::new(backend));
                    self.reset_due = reset_due;
                    queues
                }
                Err(error) => {
                    tracing::error!(%error, "the event loop does not hand the vsock queues back");
                    Vec::new()
                }
            },
            inactive => {
                self.work = inactive;
                Vec::new()
            }
        }
    }

    fn save(&self) -> VsockState {
        VsockState {}
    }
}
