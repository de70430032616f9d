//! The active device: plugs and unplugs blocks at the driver's request.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT, Reader, Writer};

use super::blocks::State;
use super::request::{BlockRange, RawRequest, RawResponse, Request, ResponseType};
use super::resizer::Pluggable;
use crate::arch::Memory;
use crate::virtio::device::{Activation, Interrupt, VirtQueue};

/// The most descriptors of a request. Linux needs two. A table of indirect descriptors can hold more than the queue.
const MAX_DESCRIPTORS: usize = 64;

/// The active device, in the event loop.
pub(super) struct Handler {
    memory: Memory,
    queues: Vec<VirtQueue>,
    interrupt: Interrupt,
    pluggable: Pluggable,
}

/// Why the driver's queue cannot be served any longer.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("the driver's queue is broken")]
    Queue(#[from] virtio_queue::Error),
    #[error("cannot report the plugged memory, or reschedule the queue")]
    Wake(#[source] io::Error),
    #[error("cannot interrupt the guest")]
    Interrupt(#[source] io::Error),
}

impl Handler {
    pub(super) fn new(activation: Activation, pluggable: Pluggable) -> Self {
        let Activation { memory, queues, interrupt, .. } = activation;
        Self { memory, queues, interrupt, pluggable }
    }

    pub(super) fn into_parts(self) -> (Vec<VirtQueue>, Pluggable) {
        (self.queues, self.pluggable)
    }

    /// Notifies the driver of the requested size.
    fn notify_requested(&self) {
        let sizes = &self.pluggable.sizes;
        // The read fails if the driver was notified already. A second notification does no harm.
        let _ = sizes.requested_event.read();
        if let Err(error) = self.interrupt.notify_config_change(&sizes.config()) {
            tracing::error!(%error, "cannot notify the guest of the requested memory size");
        }
    }

    /// Answers requests, at most a queue's size of them per call, so that a driver that always adds requests does not
    /// block the event loop.
    fn serve(&mut self) -> Result<(), ServeError> {
        let Self { memory, queues, interrupt, pluggable } = self;
        let memory = &*memory;
        let Some(VirtQueue { queue, notify }) = queues.first_mut() else { return Ok(()) };
        let mut used = false;
        for _ in 0..queue.size() {
            let Some(chain) = queue.iter(memory)?.next() else { break };
            let head = chain.head_index();
            let before = pluggable.blocks.plugged();
            let written = pluggable.answer(memory, &chain);
            if pluggable.blocks.plugged() != before {
                // The driver compares the plugged size after it sees the response, so the size is stored before.
                pluggable.publish_plugged(interrupt).map_err(ServeError::Wake)?;
            }
            queue.add_used(memory, head, written)?;
            used = true;
        }
        if queue.avail_idx(memory, Ordering::Acquire)?.0 != queue.next_avail() {
            notify.write(1).map_err(ServeError::Wake)?;
        }
        if used && queue.needs_notification(memory)? {
            interrupt.notify_used_buffers().map_err(ServeError::Interrupt)?;
        }
        Ok(())
    }
}

impl Pluggable {
    fn publish_plugged(&self, interrupt: &Interrupt) -> io::Result<()> {
        let result = self.sizes.set_plugged(self.blocks.plugged());
        interrupt.set_config(&self.sizes.config());
        result
    }

    /// Executes the request in `chain` and writes its response. Returns the response's length in bytes: 0 if the chain
    /// is not a request.
    fn answer(&mut self, memory: &Memory, chain: &DescriptorChain<&Memory>) -> u32 {
        if chain.clone().nth(MAX_DESCRIPTORS).is_some() {
            tracing::debug!("the guest sent a memory request of too many descriptors");
            return 0;
        }
        let read = |mut reader: Reader<'_>| reader.read_obj::<RawRequest>().ok();
        let request = Reader::new(memory, chain.clone()).ok().and_then(read);
        let writer = Writer::new(memory, chain.clone()).ok();
        let writer = writer.filter(|writer| writer.available_bytes() >= size_of::<RawResponse>());
        let (Some(request), Some(mut writer)) = (request, writer) else {
            tracing::debug!("the guest sent an invalid memory request");
            return 0;
        };
        let (answer, state) = self.execute(request.into());
        let written = writer.write_obj(RawResponse::new(answer, state));
        written.map_or(0, |()| u32::try_from(size_of::<RawResponse>()).expect("10 bytes"))
    }

    /// The response to `request`, and the state for a `STATE` request (section 5.15.6).
    fn execute(&mut self, request: Request) -> (ResponseType, u16) {
        match request {
            Request::Plug(range) => (self.plug(range), 0),
            Request::Unplug(range) => (self.unplug_range(range), 0),
            Request::UnplugAll => (self.unplug(self.blocks.all()), 0),
            Request::State((address, count)) => match self.blocks.range(address, count) {
                Some(range) => (ResponseType::Ack, self.blocks.state(range) as u16),
                None => (ResponseType::Error, 0),
            },
            Request::Unknown => (ResponseType::Error, 0),
        }
    }

    fn plug(&mut self, (address, count): BlockRange) -> ResponseType {
        let range = self.blocks.range(address, count);
        let Some(range) = range.filter(|range| self.blocks.state(range.clone()) == State::Unplugged) else {
            return ResponseType::Error;
        };
        let more = u64::from(count) * super::BLOCK_SIZE;
        if self.blocks.plugged() + more > self.sizes.requested() {
            return ResponseType::Nack;
        }
        match self.add(range) {
            Ok(()) => ResponseType::Ack,
            Err(error) => {
                tracing::error!(%error, "cannot map memory for the guest");
                ResponseType::Nack
            }
        }
    }

    fn unplug_range(&mut self, (address, count): BlockRange) -> ResponseType {
        let range = self.blocks.range(address, count);
        match range.filter(|range| self.blocks.state(range.clone()) == State::Plugged) {
            Some(range) => self.unplug(range),
            None => ResponseType::Error,
        }
    }

    fn unplug(&mut self, range: Range<usize>) -> ResponseType {
        let result = self.remove(range);
        if let Err(error) = &result {
            tracing::error!(%error, "cannot return memory of the guest to the host");
        }
        result.map_or(ResponseType::Error, |()| ResponseType::Ack)
    }
}

impl MutEventSubscriber for Handler {
    fn init(&mut self, ops: &mut EventOps) {
        let queues = self.queues.iter().map(|queue| queue.notify.as_raw_fd());
        for fd in queues.chain([self.pluggable.sizes.requested_event.as_raw_fd()]) {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                tracing::error!(%error, "cannot watch the memory device's queue");
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.pluggable.sizes.requested_event.as_raw_fd() {
            return self.notify_requested();
        }
        self.queues.iter().for_each(VirtQueue::clear_notification);
        if let Err(error) = self.serve() {
            // After a driver breaks its queue, the device does not serve it until reset. A driver can repeat this
            // without end, so it is only logged at debug level.
            tracing::debug!("the memory device stops: {}", crate::chain(&error));
            if let Err(error) = ops.remove(events) {
                tracing::error!(%error, "cannot stop watching the memory device's queue");
            }
        }
    }
}
