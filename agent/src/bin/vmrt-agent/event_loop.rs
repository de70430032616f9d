//! The agent's one thread: waits for events and sends each to whom it concerns.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};

use agent::{FromAgent, Hello, Response};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_gettime};
use thiserror::Error as ThisError;

use crate::connection::{Connection, ConnectionError};
use crate::container::Container;
use crate::cpus::Cpus;
use crate::error::Error;
use crate::log::{self, Level};
use crate::machine::FileSystems;
use crate::name_server::Question;
use crate::processes::Process;
use crate::streams::{CHUNK, Pump};
use crate::sys;

/// Events taken at once.
const EVENTS: usize = 64;

/// What ends the agent, and with it the guest.
#[derive(Debug, ThisError)]
pub(crate) enum Fatal {
    /// The machine could not be set up.
    #[error("set up the machine")]
    Machine(#[from] Error),
    /// The VMM cannot be talked to.
    #[error("talk to the VMM")]
    Connection(#[from] ConnectionError),
    /// Waiting for events failed.
    #[error("wait for events")]
    Wait(#[from] Errno),
}

/// Whom an event concerns.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Source {
    /// The control connection.
    Control,
    /// A process ended.
    Children,
    /// The process of this pid reports.
    Report(u32),
    /// This stream can go on.
    Stream(u32),
    /// Memory ran out in the container whose first process has this pid.
    Memory(u32),
    /// A container's processes have stopped, or go on, or are all gone.
    Cgroup,
    /// Somebody connects to this special file.
    Listener(u32),
    /// Somebody asks this name server.
    Questions(u32),
    /// The answer to this question comes.
    Answer(u32),
}

impl Source {
    fn data(self) -> EventData {
        let (kind, id) = match self {
            Self::Control => (0, 0),
            Self::Children => (1, 0),
            Self::Report(pid) => (2, pid),
            Self::Stream(id) => (3, id),
            Self::Memory(pid) => (4, pid),
            Self::Cgroup => (5, 0),
            Self::Listener(id) => (6, id),
            Self::Questions(id) => (7, id),
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
            7 => Some(Self::Questions(id)),
            8 => Some(Self::Answer(id)),
            _ => None,
        }
    }
}

/// A stream, and the process it belongs to.
pub(crate) struct Stream {
    /// What moves its bytes.
    pub(crate) pump: Pump,
    /// Pid of the process.
    pub(crate) pid: i32,
    /// The other direction of the same terminal, which ends with this one.
    pub(crate) sibling: Option<u32>,
}

/// Everything the agent knows.
pub(crate) struct Agent {
    pub(crate) epoll: OwnedFd,
    pub(crate) connection: Connection,
    pub(crate) children: OwnedFd,
    pub(crate) null: OwnedFd,
    pub(crate) myself: OwnedFd,
    pub(crate) files: Option<FileSystems>,
    pub(crate) containers: BTreeMap<String, Container>,
    pub(crate) processes: BTreeMap<i32, Process>,
    pub(crate) streams: BTreeMap<u32, Stream>,
    pub(crate) next_stream: u32,
    /// Questions to name servers that wait for their answers.
    pub(crate) questions: BTreeMap<u32, Question>,
    /// Streams that have more to move without a further event.
    pub(crate) eager: Vec<u32>,
    pub(crate) chunk: Vec<u8>,
    pub(crate) cpus: Cpus,
}

impl Agent {
    /// Connects to the VMM and says hello.
    pub(crate) fn new(null: OwnedFd, started_ns: u64) -> Result<Self, Fatal> {
        let mut connection = Connection::open()?;
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let hello = Hello { version: agent::VERSION, kernel, started_ns, ready_ns: uptime_ns() };
        connection.send(&FromAgent::Hello(hello))?;
        let agent = Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            connection,
            children: sys::child_signals()?,
            null,
            myself: rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())?,
            files: None,
            containers: BTreeMap::new(),
            processes: BTreeMap::new(),
            streams: BTreeMap::new(),
            next_stream: 0,
            questions: BTreeMap::new(),
            eager: Vec::new(),
            chunk: vec![0; CHUNK],
            cpus: Cpus::new(),
        };
        let both = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        epoll::add(&agent.epoll, &agent.connection, Source::Control.data(), both)?;
        epoll::add(&agent.epoll, &agent.children, Source::Children.data(), EventFlags::IN)?;
        Ok(agent)
    }

    /// Serves the VMM until the connection ends.
    pub(crate) fn run(mut self) -> Result<std::convert::Infallible, Fatal> {
        // Most likely a container is on its way: what it needs is made while its request is.
        warn(self.mount_files());
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            let busy = !self.eager.is_empty() || self.cpus.are_changing();
            let timeout = if busy { Some(&at_once) } else { None };
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for id in std::mem::take(&mut self.eager) {
                self.pump(id)?;
            }
            for event in events.drain(..) {
                self.dispatch(event)?;
            }
            self.finish_ended()?;
            self.answer_freezing()?;
            self.cpus.step();
            self.answer_cpus()?;
        }
    }

    fn answer_cpus(&mut self) -> Result<(), Fatal> {
        let (calls, result) = self.cpus.answered();
        for call in calls {
            self.reply(call, result.clone().map(|()| Response::Done))?;
        }
        Ok(())
    }

    fn dispatch(&mut self, event: Event) -> Result<(), Fatal> {
        let flags = event.flags;
        match Source::from_data(event.data) {
            Some(Source::Control) => self.control(flags),
            Some(Source::Children) => self.reap(),
            Some(Source::Report(pid)) => self.report(pid.cast_signed()),
            Some(Source::Stream(id)) if flags.contains(EventFlags::ERR) => self.stream_failed(id),
            Some(Source::Stream(id)) => self.pump(id),
            Some(Source::Memory(pid)) => self.tell_out_of_memory(pid.cast_signed()),
            Some(Source::Listener(id)) => {
                self.accept(id);
                Ok(())
            }
            Some(Source::Questions(id)) => {
                self.take_questions(id);
                Ok(())
            }
            Some(Source::Answer(id)) => {
                self.take_answer(id);
                Ok(())
            }
            // All who wait for it are looked after behind every event.
            Some(Source::Cgroup) | None => Ok(()),
        }
    }

    fn control(&mut self, flags: EventFlags) -> Result<(), Fatal> {
        self.connection.flush()?;
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            for call in self.connection.receive()? {
                self.answer(call)?;
            }
        }
        Ok(())
    }

    /// The file systems the agent works with, mounted now if they are not yet.
    pub(crate) fn mount_files(&mut self) -> Result<(), Error> {
        if self.files.is_none() {
            self.files = Some(FileSystems::mount()?);
        }
        Ok(())
    }

    /// An id that no stream, listener or question has.
    pub(crate) fn take_stream_id(&mut self) -> u32 {
        let id = self.next_stream;
        self.next_stream = self.next_stream.wrapping_add(1);
        id
    }

    /// Lets events of `fd` come from `source`.
    pub(crate) fn watch(&self, fd: BorrowedFd<'_>, source: Source, flags: EventFlags) -> Result<(), Error> {
        epoll::add(&self.epoll, fd, source.data(), flags).map_err(Error::at("watch a descriptor"))
    }
}

/// Says what went wrong where the guest can go on without it.
pub(crate) fn warn(result: Result<(), Error>) {
    if let Err(error) = result {
        log::line(Level::Warning, chain(&error));
    }
}

/// Nanoseconds since the kernel started its clock.
pub(crate) fn uptime_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

/// An error and all its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_survives_the_kernel() {
        for source in [
            Source::Control,
            Source::Children,
            Source::Report(7),
            Source::Stream(u32::MAX),
            Source::Memory(1),
            Source::Cgroup,
            Source::Listener(3),
            Source::Questions(4),
            Source::Answer(5),
        ] {
            assert_eq!(Source::from_data(source.data()), Some(source));
        }
    }

    #[test]
    fn a_chain_of_errors_is_one_line() {
        let error = Fatal::from(Error::on("mount", "/proc")(Errno::NODEV));
        assert_eq!(chain(&error), "set up the machine: mount /proc: No such device (os error 19)");
    }
}
