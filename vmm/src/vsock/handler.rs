//! The active device: moves packets between its queues and the [`Backend`].

use std::os::fd::AsRawFd;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};
use vm_memory::Bytes;

use super::backend::Backend;
use super::packet::GuestPacket;
use crate::arch::Memory;
use crate::virtio::device::{Activation, Interrupt, VirtQueue, next_chain};

/// Index of the receive queue, which carries packets to the guest.
pub(super) const RX: usize = 0;
/// Index of the transmit queue, which carries packets from the guest.
pub(super) const TX: usize = 1;
/// Index of the event queue, which carries events to the guest.
pub(super) const EVENT: usize = 2;

/// The most packets moved in each direction before the event loop serves other subscribers.
pub(super) const BATCH: usize = 256;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (virtio 1.2, 5.10.6.7) as written to an event buffer.
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// The active device, in the event loop.
#[derive(Debug)]
pub(super) struct Handler {
    memory: Memory,
    queues: Vec<VirtQueue>,
    interrupt: Interrupt,
    backend: Backend,
    /// Whether the guest has yet to get a transport reset event.
    transport_reset_due: bool,
}

/// The queues in which buffers were used since the last notification.
#[derive(Default)]
struct Used {
    rx: bool,
    tx: bool,
    event: bool,
}

impl Handler {
    pub(super) fn new(activation: Activation, backend: Backend, transport_reset_due: bool) -> Self {
        let Activation { memory, queues, interrupt, .. } = activation;
        Self { memory, queues, interrupt, backend, transport_reset_due }
    }

    pub(super) fn into_parts(self) -> (Vec<VirtQueue>, Backend, bool) {
        (self.queues, self.backend, self.transport_reset_due)
    }

    /// Handles the host descriptors that became ready.
    pub(super) fn dispatch(&mut self) -> std::io::Result<()> {
        self.backend.dispatch()
    }

    #[cfg(test)]
    pub(super) fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Serves all queues and sends at most one used buffer notification.
    pub(super) fn serve(&mut self) {
        let mut used = Used::default();
        self.send_transport_reset(&mut used);
        let (mut to_take, mut to_deliver) = (BATCH, BATCH);
        while self.transmit(&mut used, &mut to_take) | self.deliver(&mut used, &mut to_deliver) {}
        for (index, left) in [(TX, to_take), (RX, to_deliver)] {
            if left == 0 {
                // There may be more packets. The event loop calls again after it has served its other subscribers. The
                // write fails only if the counter is full, and then it is readable.
                let _ = self.queues[index].notify.write(1);
            }
        }
        self.interrupt(&used);
    }

    /// Takes at most `left` packets from the guest, while the number of resets that wait is below its bound.
    fn transmit(&mut self, used: &mut Used, left: &mut usize) -> bool {
        let Self { memory, queues, backend, .. } = self;
        let queue = &mut queues[TX].queue;
        let before = *left;
        while *left > 0 && backend.accepts_packets() {
            let Some(mut chain) = next_chain(queue, memory) else { break };
            *left -= 1;
            match GuestPacket::parse(memory, &mut chain) {
                Ok(packet) => backend.receive(&packet),
                Err(error) => tracing::debug!(%error, "the guest sent an invalid vsock packet"),
            }
            used.tx |= add_used(queue, memory, chain.head_index(), 0);
        }
        *left < before
    }

    /// Uses at most `left` receive buffers, while there are packets for the guest.
    fn deliver(&mut self, used: &mut Used, left: &mut usize) -> bool {
        let Self { memory, queues, backend, .. } = self;
        let queue = &mut queues[RX].queue;
        let before = *left;
        while *left > 0 && backend.has_output() {
            let Some(mut chain) = next_chain(queue, memory) else { break };
            let length = match VsockPacket::from_rx_virtq_chain(memory, &mut chain, u32::MAX) {
                Ok(mut packet) => {
                    if !backend.fill(&mut packet) {
                        queue.go_to_previous_position();
                        break;
                    }
                    HEADER_SIZE + packet.len()
                }
                Err(error) => {
                    tracing::debug!(%error, "the guest added an invalid vsock receive buffer");
                    0
                }
            };
            *left -= 1;
            used.rx |= add_used(queue, memory, chain.head_index(), length);
        }
        *left < before
    }

    fn send_transport_reset(&mut self, used: &mut Used) {
        if !self.transport_reset_due {
            return;
        }
        let queue = &mut self.queues[EVENT].queue;
        let Some(mut chain) = next_chain(queue, &self.memory) else { return };
        let buffer = chain.next().filter(|buffer| buffer.is_write_only() && buffer.len() >= 4);
        let written = buffer.is_some_and(|buffer| self.memory.write_slice(&TRANSPORT_RESET, buffer.addr()).is_ok());
        self.transport_reset_due = !written;
        used.event = add_used(queue, &self.memory, chain.head_index(), if written { 4 } else { 0 });
    }

    fn interrupt(&mut self, used: &Used) {
        let mut needed = false;
        for (index, used) in [(RX, used.rx), (TX, used.tx), (EVENT, used.event)] {
            needed |= used && self.queues[index].queue.needs_notification(&self.memory).unwrap_or(true);
        }
        if needed && let Err(error) = self.interrupt.notify_used_buffers() {
            tracing::error!(%error, "cannot interrupt the guest");
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the size of a small structure")]
const HEADER_SIZE: u32 = PKT_HEADER_SIZE as u32;

impl MutEventSubscriber for Handler {
    fn init(&mut self, ops: &mut EventOps) {
        let mut fds: Vec<_> = self.queues.iter().map(|queue| queue.notify.as_raw_fd()).collect();
        fds.push(self.backend.events().as_raw_fd());
        for fd in fds {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                tracing::error!(%error, "cannot watch a vsock queue");
            }
        }
        self.serve();
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if events.fd() == self.backend.events().as_raw_fd() {
            if let Err(error) = self.dispatch() {
                tracing::error!(%error, "cannot wait for the streams' descriptors");
            }
        } else if let Some(queue) = self.queues.iter().find(|queue| queue.notify.as_raw_fd() == events.fd()) {
            // The read fails if another call has read the eventfd already. The queue is served in any case.
            let _ = queue.notify.read();
        }
        self.serve();
    }
}

fn add_used(queue: &mut Queue, memory: &Memory, head: u16, length: u32) -> bool {
    match queue.add_used(memory, head, length) {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(%error, "cannot add a chain to the used ring");
            false
        }
    }
}
