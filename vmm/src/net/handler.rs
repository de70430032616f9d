//! The device's work while it is active: moving frames between its queues and the tap.

use std::io;
use std::os::fd::AsRawFd;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::VolatileSlice;

use super::chain::{self, Access};
use super::header::{self, HEADER_LEN, MAX_FRAME};
use super::slot::Slot;
use super::tap::Tap;
use super::used_ring::{self, UsedChain};
use crate::virtio::device::{Activation, Interrupt, Memory, VirtQueue};

/// Index of the queue that carries frames to the guest.
pub(super) const RX: usize = 0;
/// Index of the queue that carries frames from the guest.
pub(super) const TX: usize = 1;

/// Frames moved each way before the event loop serves others.
const BATCH: usize = 256;

/// The active device, in the event loop.
pub(super) struct Handler {
    memory: Memory,
    queues: Vec<VirtQueue>,
    interrupt: Interrupt,
    features: u64,
    slot: Slot,
    /// The driver has to look at the link.
    notify_link: bool,
    /// A frame from the tap, as long as `held` says; 0 where there is none that waits for buffers.
    frame: Box<[u8]>,
    pending: usize,
    /// Why the tap cannot be read any more.
    failed: Option<io::Error>,
}

impl Handler {
    pub(super) fn new(activation: Activation, slot: Slot, notify_link: bool) -> Self {
        let Activation { memory, queues, interrupt, features } = activation;
        let frame = vec![0; MAX_FRAME].into_boxed_slice();
        Self { memory, queues, interrupt, features, slot, notify_link, frame, pending: 0, failed: None }
    }

    pub(super) fn into_parts(self) -> (Vec<VirtQueue>, Slot) {
        (self.queues, self.slot)
    }

    /// Begins to work with a tap that was attached, or that a reset driver left.
    fn start_tap(&mut self, ops: &mut EventOps) {
        let Some(tap) = &self.slot.tap else { return };
        if let Err(error) = tap.set_offloads(self.features) {
            // The tap does that work itself then, which is slower and no less right.
            tracing::debug!(%error, "cannot set what a tap leaves to the guest");
        }
        // Edge-triggered: a frame that the guest has no buffer for must not keep the loop busy.
        if let Err(error) = ops.add(Events::new(tap, EventSet::IN | EventSet::EDGE_TRIGGERED)) {
            return tracing::error!(%error, "cannot watch a tap");
        }
        self.slot.link.set_up();
        self.notify_link_state();
    }

    /// A tap that fails is gone: somebody has deleted the interface.
    fn detach_failed_tap(&mut self, ops: &mut EventOps) {
        let Some(error) = self.failed.take() else { return };
        let Some(tap) = self.slot.tap.take() else { return };
        tracing::info!(slot = self.slot.number, %error, "a network interface is gone");
        if let Err(error) = ops.remove(Events::empty(&tap)) {
            tracing::error!(%error, "cannot stop watching a tap");
        }
        self.pending = 0;
        self.slot.link.set_down();
        self.notify_link_state();
    }

    fn notify_link_state(&self) {
        if let Err(error) = self.interrupt.notify_config_change(&self.slot.link.config(self.slot.address())) {
            tracing::error!(%error, "cannot tell the guest of its network link");
        }
    }

    /// Does what there is to do, and tells the driver once.
    fn serve(&mut self) {
        let notified = [RX, TX].map(|index| self.queues[index].queue.next_used());
        for (index, moved) in [(TX, self.transmit()), (RX, self.receive())] {
            if moved == BATCH {
                // There may be more; the loop comes back to it after it looked at everybody else.
                let _ = self.queues[index].notify.write(1);
            }
        }
        let wanted = [RX, TX].into_iter().any(|index| {
            let queue = &self.queues[index].queue;
            queue.next_used() != notified[index] && used_ring::needs_notification(queue, &self.memory, notified[index])
        });
        if wanted && let Err(error) = self.interrupt.notify_used_buffers() {
            tracing::error!(%error, "cannot interrupt the guest");
        }
    }

    /// Moves frames from the guest to the tap; without one they are lost, as on a cable that is not plugged in.
    fn transmit(&mut self) -> usize {
        let Self { memory, queues, slot, .. } = self;
        let queue = &mut queues[TX].queue;
        for moved in 0..BATCH {
            let Some(mut chain) = next_chain(queue, memory) else { return moved };
            match chain::slices(&mut chain, memory, Access::Read).filter(|frame| chain::is_frame(frame)) {
                Some(frame) => send(slot.tap.as_ref(), &frame),
                None => tracing::debug!("the guest sent a chain that is no frame"),
            }
            if let Err(error) = queue.add_used(memory, chain.head_index(), 0) {
                tracing::debug!(%error, "cannot give a chain back to the guest");
            }
        }
        BATCH
    }

    /// Moves frames from the tap to the guest, as long as it has buffers for them.
    fn receive(&mut self) -> usize {
        for moved in 0..BATCH {
            if !self.read_frame() || !self.deliver() {
                return moved;
            }
        }
        BATCH
    }

    /// Sees to it that there is a frame to deliver; false where there is none.
    fn read_frame(&mut self) -> bool {
        while self.pending == 0 {
            let Some(tap) = &self.slot.tap else { return false };
            match tap.read(&mut self.frame) {
                Ok(length) if length > HEADER_LEN => self.pending = length,
                Ok(0) => self.failed = Some(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.failed = Some(error),
            }
            if self.failed.is_some() {
                return false;
            }
        }
        true
    }

    /// Puts the held frame into the guest's buffers; false where they do not suffice yet.
    fn deliver(&mut self) -> bool {
        let Self { memory, queues, features, frame, pending, .. } = self;
        let queue = &mut queues[RX].queue;
        let most = if *features & (1 << VIRTIO_NET_F_MRG_RXBUF) != 0 { queue.size() } else { 1 };
        let Some(buffers) = ReceiveBuffers::find(queue, memory, *pending, most) else { return false };
        let used = buffers.fill(&mut frame[..*pending]);
        *pending = 0;
        if let Err(error) = used_ring::add_used(queue, memory, &used) {
            tracing::debug!(%error, "cannot give chains back to the guest");
        }
        true
    }
}

/// Buffers of the guest that take a frame together, or that turned out to be none.
struct ReceiveBuffers<'m> {
    chains: Vec<(u16, Vec<VolatileSlice<'m>>)>,
    sufficient: bool,
}

impl<'m> ReceiveBuffers<'m> {
    /// Takes chains until they hold `length` bytes. `None`, with nothing taken, where the driver has to offer more;
    /// room that is not enough, where `most` chains do not suffice.
    fn find(queue: &mut Queue, memory: &'m Memory, length: usize, most: u16) -> Option<Self> {
        let mut buffers = Self { chains: Vec::new(), sufficient: false };
        let mut found = 0;
        while !buffers.sufficient && buffers.chains.len() < usize::from(most) {
            let Some(mut chain) = next_chain(queue, memory) else {
                buffers.chains.iter().for_each(|_| queue.go_to_previous_position());
                return None;
            };
            let slices = chain::slices(&mut chain, memory, Access::Write).unwrap_or_else(|| {
                tracing::debug!("the guest offers a chain that takes no frame");
                Vec::new()
            });
            found += chain::length(&slices);
            buffers.chains.push((chain.head_index(), slices));
            buffers.sufficient = found >= length;
        }
        Some(buffers)
    }

    /// Copies the frame in: the chains and how much is in each. A frame there is not enough room for is dropped, and the
    /// chains are given back empty.
    fn fill(&self, frame: &mut [u8]) -> Vec<UsedChain> {
        header::set_buffers(frame, u16::try_from(self.chains.len()).unwrap_or(u16::MAX));
        let mut rest = if self.sufficient { &*frame } else { &[] };
        let fill_one = |(head, slices): &(u16, Vec<VolatileSlice<'m>>)| {
            let before = rest.len();
            for slice in slices {
                slice.copy_from(rest);
                rest = &rest[slice.len().min(rest.len())..];
            }
            (*head, u32::try_from(before - rest.len()).unwrap_or(u32::MAX))
        };
        self.chains.iter().map(fill_one).collect()
    }
}

/// A frame the tap does not take is lost, as any network may lose frames.
fn send(tap: Option<&Tap>, frame: &[VolatileSlice<'_>]) {
    if let Some(Err(error)) = tap.map(|tap| tap.write(frame)) {
        tracing::debug!(%error, "a tap does not take a frame");
    }
}

impl MutEventSubscriber for Handler {
    fn init(&mut self, ops: &mut EventOps) {
        let queues = self.queues.iter().map(|queue| queue.notify.as_raw_fd());
        for fd in queues.chain([self.slot.link.attach_event.as_raw_fd()]) {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                tracing::error!(%error, "cannot watch a network queue");
            }
        }
        if std::mem::take(&mut self.notify_link) {
            self.notify_link_state();
        }
        self.start_tap(ops);
        self.serve();
        self.detach_failed_tap(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.slot.link.attach_event.as_raw_fd() {
            // Nothing to read means that somebody has read it: the channel is looked at all the same.
            let _ = self.slot.link.attach_event.read();
            if self.slot.take_attached().is_some() {
                self.start_tap(ops);
            }
        } else if let Some(queue) = self.queues.iter().find(|queue| queue.notify.as_raw_fd() == events.fd()) {
            queue.clear_notification();
        }
        self.serve();
        self.detach_failed_tap(ops);
    }
}

/// The next chain; when there is none, the driver will notify.
fn next_chain<'m>(queue: &mut Queue, memory: &'m Memory) -> Option<DescriptorChain<&'m Memory>> {
    queue.pop_descriptor_chain(memory).or_else(|| match queue.enable_notification(memory) {
        // One more came just before notifications were on. Only one more look: a driver whose index is nonsense
        // always seems to have something.
        Ok(true) => queue.pop_descriptor_chain(memory),
        _ => None,
    })
}
