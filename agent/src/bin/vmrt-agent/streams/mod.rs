//! Streams between the guest and ports of the host: of processes, and of connections to sockets of the host.

pub(crate) mod host;
pub(crate) mod listener;
pub(crate) mod pump;

use std::collections::BTreeMap;

use rustix::event::epoll::EventFlags;

use self::pump::{Progress, Pump};
use crate::error::Error;
use crate::events::{Poll, Source};

/// One direction of a stream.
pub(crate) struct Stream {
    /// Moves the bytes.
    pub(crate) pump: Pump,
    /// Pid of the process that the stream belongs to; `None` for a connection to a socket of the host.
    pub(crate) process: Option<i32>,
    /// The other direction of the same terminal. The output's end also ends the input.
    pub(crate) opposite: Option<u32>,
}

/// All streams, by their ids.
#[derive(Default)]
pub(crate) struct Streams {
    by_id: BTreeMap<u32, Stream>,
    /// Streams that can make progress without a further event.
    ready: Vec<u32>,
}

impl Streams {
    /// Adds a stream that belongs to `process`, and watches both of its ends. Returns its id.
    pub(crate) fn add(&mut self, poll: &Poll, pump: Pump, process: Option<i32>) -> Result<u32, Error> {
        let id = poll.next_id();
        let source = Source::Stream(id);
        poll.watch(pump.from(), source, EventFlags::IN)?;
        poll.watch(pump.to(), source, EventFlags::OUT)?;
        self.by_id.insert(id, Stream { pump, process, opposite: None });
        Ok(id)
    }

    /// Marks two streams as the two directions of one terminal.
    pub(crate) fn pair(&mut self, output: u32, input: u32) {
        for (id, opposite) in [(output, input), (input, output)] {
            self.by_id.entry(id).and_modify(|stream| stream.opposite = Some(opposite));
        }
    }

    /// The stream with this id.
    pub(crate) fn get(&self, id: u32) -> Option<&Stream> {
        self.by_id.get(&id)
    }

    /// Removes a stream, which closes its descriptors.
    pub(crate) fn remove(&mut self, id: u32) -> Option<Stream> {
        self.by_id.remove(&id)
    }

    /// Records that the writer of a stream has ended: see [`Pump::begin_drain`].
    pub(crate) fn begin_drain(&mut self, id: u32) {
        self.by_id.entry(id).and_modify(|stream| stream.pump.begin_drain());
    }

    /// Moves bytes of a stream. `buffer` is scratch space of [`pump::CHUNK`] bytes. True if the stream has ended.
    #[must_use]
    pub(crate) fn advance(&mut self, id: u32, buffer: &mut [u8]) -> bool {
        let Some(stream) = self.by_id.get_mut(&id) else { return false };
        match stream.pump.turn(buffer) {
            Progress::Waiting => false,
            Progress::More => {
                self.ready.push(id);
                false
            }
            Progress::Finished => true,
        }
    }

    /// Whether a stream can make progress without a further event.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Removes and returns the ids of the streams that can make progress.
    pub(crate) fn take_ready(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.ready)
    }

    /// Number of streams that belong to no process.
    fn without_process(&self) -> usize {
        self.by_id.values().filter(|stream| stream.process.is_none()).count()
    }
}
