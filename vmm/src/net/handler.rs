//! The active device: moves frames between its queues and the tap.

use std::io;
use std::os::fd::AsRawFd;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::VolatileSlice;

use super::chain::{self, Access};
use super::header::{self, HEADER_LEN, MAX_FRAME};
use super::slot::Slot;
use super::tap::Tap;
use super::used_ring::{self, UsedChain};
use crate::arch::Memory;
use crate::virtio::device::{Activation, Interrupt, VirtQueue, next_chain};

/// Index of the receive queue, which carries frames to the guest.
pub(super) const RX: usize = 0;
/// Index of the transmit queue, which carries frames from the guest.
pub(super) const TX: usize = 1;

/// The most frames moved in each direction before the event loop serves other subscribers.
const BATCH: usize = 256;

/// The most receive buffers used before the event loop serves other subscribers. Linux uses at most 17 for a frame, but
/// a guest can add buffers of no length.
const MAX_BUFFERS: usize = 16 * BATCH;

/// The active device, in the event loop.
pub(super) struct Handler {
    memory: Memory,
    queues: Vec<VirtQueue>,
    interrupt: Interrupt,
    features: u64,
    slot: Slot,
    /// Whether the driver must be notified of the link's state.
    notify_link: bool,
    /// A frame from the tap that waits for receive buffers, of `pending` bytes. 0 means that there is none.
    frame: Box<[u8]>,
    pending: usize,
    /// The error of a failed read from the tap.
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

    /// Starts to use a tap that was attached now, or before the driver's last reset.
    fn start_tap(&mut self, ops: &mut EventOps) {
        let Some(tap) = &self.slot.tap else { return };
        if let Err(error) = tap.set_offloads(self.features) {
            // The tap then does this work itself, which is slower but correct.
            tracing::debug!(%error, "cannot set the offloads of a tap");
        }
        // Edge-triggered, so that a frame without a receive buffer does not keep the loop busy.
        if let Err(error) = ops.add(Events::new(tap, EventSet::IN | EventSet::EDGE_TRIGGERED)) {
            return tracing::error!(%error, "cannot watch a tap");
        }
        self.slot.link.set_up();
        self.notify_link_state();
    }

    /// Detaches a tap after a failed read: the interface was deleted.
    fn detach_failed_tap(&mut self, ops: &mut EventOps) {
        let Some(error) = self.failed.take() else { return };
        let Some(tap) = self.slot.tap.take() else { return };
        tracing::info!(slot = self.slot.number, %error, "a network interface was deleted");
        if let Err(error) = ops.remove(Events::empty(&tap)) {
            tracing::error!(%error, "cannot stop watching a tap");
        }
        self.pending = 0;
        self.slot.link.set_down();
        self.notify_link_state();
    }

    fn notify_link_state(&self) {
        if let Err(error) = self.interrupt.notify_config_change(&self.slot.link.config(self.slot.address())) {
            tracing::error!(%error, "cannot notify the guest of its network link");
        }
    }

    /// Serves both queues and sends at most one used buffer notification.
    fn serve(&mut self) {
        let notified = [RX, TX].map(|index| self.queues[index].queue.next_used());
        for (index, has_more) in [(TX, self.transmit()), (RX, self.receive())] {
            if has_more {
                // The event loop calls again after it has served its other subscribers.
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

    /// Moves frames from the guest to the tap. Without a tap the frames are dropped, as on an unplugged cable. Returns
    /// whether there may be more frames.
    fn transmit(&mut self) -> bool {
        let Self { memory, queues, slot, .. } = self;
        let queue = &mut queues[TX].queue;
        for _ in 0..BATCH {
            let Some(mut chain) = next_chain(queue, memory) else { return false };
            match chain::slices(&mut chain, memory, Access::Read).filter(|frame| chain::is_frame(frame)) {
                Some(frame) => send(slot.tap.as_ref(), &frame),
                None => tracing::debug!("the guest sent an invalid frame"),
            }
            if let Err(error) = queue.add_used(memory, chain.head_index(), 0) {
                tracing::debug!(%error, "cannot add a chain to the used ring");
            }
        }
        true
    }

    /// Moves frames from the tap to the guest while there are receive buffers. Returns whether there may be more
    /// frames.
    fn receive(&mut self) -> bool {
        let mut buffers = 0;
        for _ in 0..BATCH {
            if !self.read_frame() {
                return false;
            }
            let Some(used) = self.deliver() else { return false };
            buffers += used;
            if buffers >= MAX_BUFFERS {
                break;
            }
        }
        true
    }

    /// Reads a frame from the tap unless one is pending. Returns false if there is none.
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

    /// Copies the pending frame to receive buffers, and returns their number. `None` if there are not enough yet.
    fn deliver(&mut self) -> Option<usize> {
        let Self { memory, queues, features, frame, pending, .. } = self;
        let queue = &mut queues[RX].queue;
        let max_chains = if *features & (1 << VIRTIO_NET_F_MRG_RXBUF) != 0 { queue.size() } else { 1 };
        let buffers = ReceiveBuffers::find(queue, memory, *pending, max_chains)?;
        let used = buffers.fill(&mut frame[..*pending]);
        *pending = 0;
        if let Err(error) = used_ring::add_used(queue, memory, &used) {
            tracing::debug!(%error, "cannot add chains to the used ring");
        }
        Some(used.len())
    }
}

/// Receive buffers for one frame.
struct ReceiveBuffers<'m> {
    chains: Vec<(u16, Vec<VolatileSlice<'m>>)>,
    sufficient: bool,
}

impl<'m> ReceiveBuffers<'m> {
    /// Takes chains until they hold `length` bytes, at most `max_chains` of them. `None` means that the driver has to
    /// add more buffers; then no chain is taken. If `max_chains` chains do not suffice, the result is not `sufficient`.
    fn find(queue: &mut Queue, memory: &'m Memory, length: usize, max_chains: u16) -> Option<Self> {
        let mut buffers = Self { chains: Vec::new(), sufficient: false };
        let mut found = 0;
        while !buffers.sufficient && buffers.chains.len() < usize::from(max_chains) {
            let Some(mut chain) = next_chain(queue, memory) else {
                buffers.chains.iter().for_each(|_| queue.go_to_previous_position());
                return None;
            };
            let slices = chain::slices(&mut chain, memory, Access::Write).unwrap_or_else(|| {
                tracing::debug!("the guest added an invalid receive buffer");
                Vec::new()
            });
            found += chain::length(&slices);
            buffers.chains.push((chain.head_index(), slices));
            buffers.sufficient = found >= length;
        }
        Some(buffers)
    }

    /// Copies the frame to the buffers. Returns the chains with the number of bytes written to each. If the buffers are
    /// not sufficient, the frame is dropped and 0 bytes are written.
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

/// Writes a frame to the tap. A frame that the tap does not take is dropped, as any network may drop frames.
fn send(tap: Option<&Tap>, frame: &[VolatileSlice<'_>]) {
    if let Some(Err(error)) = tap.map(|tap| tap.write(frame)) {
        tracing::debug!(%error, "cannot write a frame to a tap");
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
            // The read fails if another call has read the eventfd already. The channel is checked in any case.
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
