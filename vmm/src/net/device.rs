//! The [`VirtioDevice`] implementation.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;

use super::handler::{Handler, RX, TX};
use super::slot::{Link, Slot};
use crate::event_loop::LoopHandle;
use crate::virtio::device::{ActivateError, Activation, VirtQueue, VirtioDevice};
use crate::virtio::event_loop_backend::EventLoopBackend;

/// Descriptors per queue. Linux adds receive buffers of a page or less, one descriptor each.
const QUEUE_SIZES: [u16; 2] = [256, 256];

/// Both sides may leave checksums and TCP segmentation to the other side; the tap does so for the host. There is no
/// control queue, because the guest's receive filters would only drop frames that the host's interface has let through.
const FEATURES: [u32; 14] = [
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
];

/// The saved state of the device, which is empty. A tap is a descriptor of this process and ends with it. The guest of
/// a restored machine sees the link go down, and up again when a new tap is attached.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NetState {}

/// A network device.
pub struct Net {
    address: [u8; 6],
    link: Arc<Link>,
    backend: EventLoopBackend<Slot, Handler>,
    /// Whether the driver must be notified of the link's state, because it comes from another machine.
    notify_link: bool,
}

impl Net {
    /// The device in `slot`, served by `event_loop`. With a state, the device notifies its driver of the link's state.
    #[must_use]
    pub fn new(slot: Slot, event_loop: LoopHandle, state: Option<NetState>) -> Self {
        let (address, link) = (slot.address(), Arc::clone(&slot.link));
        Self { address, link, backend: EventLoopBackend::new(event_loop, slot), notify_link: state.is_some() }
    }
}

impl VirtioDevice for Net {
    type State = NetState;

    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        FEATURES.iter().fold(0, |features, feature| features | 1 << feature)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Vec<u8> {
        self.link.config(self.address).into()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        for index in [RX, TX] {
            if !activation.queues.get(index).is_some_and(|queue| queue.queue.ready()) {
                return Err(ActivateError::QueueDisabled(index));
            }
        }
        let notify_link = &mut self.notify_link;
        self.backend.activate(|slot| Handler::new(activation, slot, std::mem::take(notify_link)))
    }

    fn deactivate(&mut self) -> Vec<VirtQueue> {
        self.backend.deactivate("network", Handler::into_parts)
    }

    fn save(&self) -> NetState {
        NetState {}
    }
}
