//! The epoll instance that the event loop waits on, and the sources of its events.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use crate::error::Error;

/// The source of an event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Source {
    /// The control connection.
    Control,
    /// A child process of the agent ended.
    Children,
    /// The process with this pid sent a report.
    Report(u32),
    /// The stream with this id can make progress.
    Stream(u32),
    /// The container whose first process has this pid ran out of memory.
    Memory(u32),
    /// The processes of a container were frozen or thawed, or the last one ended.
    Cgroup,
    /// A connection arrived at the listener with this id.
    Listener(u32),
    /// A query arrived at the name server with this id.
    Queries(u32),
    /// A part of the answer to the query with this id arrived.
    Answer(u32),
}

impl Source {
    /// The source of `event`; `None` if the kernel returned an unknown number.
    pub(crate) fn of(event: Event) -> Option<Self> {
        Self::from_data(event.data)
    }

    fn data(self) -> EventData {
        let (kind, id) = match self {
            Self::Control => (0, 0),
            Self::Children => (1, 0),
            Self::Report(pid) => (2, pid),
            Self::Stream(id) => (3, id),
            Self::Memory(pid) => (4, pid),
            Self::Cgroup => (5, 0),
            Self::Listener(id) => (6, id),
            Self::Queries(id) => (7, id),
            Self::Answer(id) => (8, id),
        };
        EventData::new_u64(kind << 32 | u64::from(id))
    }

    fn from_data(data: EventData) -> Option<Self> {
        let data = data.u64();
        let id = u32::try_from(data & u64::from(u32::MAX)).ok()?;
        match data >> 32 {
            0 => Some(Self::Control),
            1 => Some(Self::Children),
            2 => Some(Self::Report(id)),
            3 => Some(Self::Stream(id)),
            4 => Some(Self::Memory(id)),
            5 => Some(Self::Cgroup),
            6 => Some(Self::Listener(id)),
            7 => Some(Self::Queries(id)),
            8 => Some(Self::Answer(id)),
            _ => None,
        }
    }
}

/// The epoll instance.
pub(crate) struct Poll {
    epoll: OwnedFd,
    next_id: Cell<u32>,
}

impl Poll {
    /// An instance without sources.
    pub(crate) fn new() -> rustix::io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, next_id: Cell::new(0) })
    }

    /// Delivers events of `fd` as events of `source`. An event is delivered once, so its handler has to read or write until that would
    /// block.
    ///
    /// Closing `fd` ends that only when no process has a copy. A process that is being made has a copy of every descriptor of the
    /// agent until it executes its program. Were the event delivered as long as its condition holds, an agent that has closed `fd`
    /// would be woken again and again, and would leave the new process no CPU time.
    pub(crate) fn add(&self, fd: impl AsFd, source: Source, flags: EventFlags) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, fd, source.data(), flags | EventFlags::ET)
    }

    /// Like [`Poll::add`], with an error for the reply to a request.
    pub(crate) fn watch(&self, fd: impl AsFd, source: Source, flags: EventFlags) -> Result<(), Error> {
        self.add(fd, source, flags).map_err(Error::at("watch a descriptor"))
    }

    /// Appends pending events to `events`, up to its capacity. Waits for the first one only if `block` is set.
    pub(crate) fn wait(&self, events: &mut Vec<Event>, block: bool) -> rustix::io::Result<()> {
        let immediately = Timespec { tv_sec: 0, tv_nsec: 0 };
        let timeout = if block { None } else { Some(&immediately) };
        match epoll::wait(&self.epoll, spare_capacity(events), timeout) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// An id that no other stream, listener, name server or query has.
    pub(crate) fn next_id(&self) -> u32 {
        self.next_id.replace(self.next_id.get().wrapping_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_source_is_silent_while_another_process_has_a_copy() {
        let poll = Poll::new().unwrap();
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        poll.add(&ours, Source::Report(7), EventFlags::IN).unwrap();
        let copy = ours.try_clone().unwrap();
        drop(theirs);
        let mut events = Vec::with_capacity(4);
        poll.wait(&mut events, true).unwrap();
        assert_eq!(events.drain(..).filter_map(Source::of).collect::<Vec<_>>(), [Source::Report(7)]);
        drop(ours);
        poll.wait(&mut events, false).unwrap();
        assert!(events.is_empty());
        drop(copy);
    }

    #[test]
    fn a_source_survives_the_conversion_to_event_data() {
        for source in [
            Source::Control,
            Source::Children,
            Source::Report(7),
            Source::Stream(u32::MAX),
            Source::Memory(1),
            Source::Cgroup,
            Source::Listener(3),
            Source::Queries(4),
            Source::Answer(5),
        ] {
            assert_eq!(Source::from_data(source.data()), Some(source));
        }
    }
}
