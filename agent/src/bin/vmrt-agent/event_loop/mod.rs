//! The agent's only thread: it waits for events and handles each.
//!
//! [`Agent`] holds all state. Requests of the VMM are handled in [`requests`], the life of processes in [`lifecycle`],
//! their streams in [`streams`].

mod cgroups;
mod connection;
mod create;
mod exec;
mod interfaces;
mod lifecycle;
mod lookup;
mod requests;
mod signals;
mod streams;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use agent::{FromAgent, Hello, Response};
use rustix::event::epoll::{Event, EventFlags};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use thiserror::Error as ThisError;

use self::connection::{Connection, ConnectionError};
use crate::container::Container;
use crate::error::Error;
use crate::events::{Poll, Source};
use crate::machine::cpus::Cpus;
use crate::machine::file_systems::FileSystems;
use crate::machine::{clock, log};
use crate::network::name_server::queries::Queries;
use crate::processes::Process;
use crate::streams::Streams;
use crate::streams::host::Host;
use crate::streams::pump::CHUNK;
use crate::sys;

/// Maximum number of events that one wait returns.
const MAX_EVENTS: usize = 64;

/// An error that ends the agent, and with it the guest.
#[derive(Debug, ThisError)]
pub(crate) enum Fatal {
    /// The set-up of the machine failed.
    #[error("set up the machine")]
    Machine(#[from] Error),
    /// The connection to the VMM failed.
    #[error("communicate with the VMM")]
    Connection(#[from] ConnectionError),
    /// Waiting for events failed.
    #[error("wait for events")]
    Wait(#[from] Errno),
}

/// The state of the agent.
pub(crate) struct Agent {
    poll: Poll,
    connection: Connection,
    /// Whether the machine becomes a template, or has started from one and is not connected to its VMM yet.
    is_template: bool,
    /// Readable when a child process has ended.
    children: OwnedFd,
    /// `/dev/null`.
    null: OwnedFd,
    /// A pidfd of the agent.
    pidfd: OwnedFd,
    files: Option<FileSystems>,
    /// By id.
    containers: BTreeMap<String, Container>,
    /// By pid.
    processes: BTreeMap<i32, Process>,
    host: Host,
    streams: Streams,
    queries: Queries,
    cpus: Cpus,
    /// Scratch space for streams and name servers.
    buffer: Vec<u8>,
}

impl Agent {
    /// Connects to the VMM and sends [`Hello`]. `null` is an open `/dev/null`, `started_ns` the uptime when PID 1
    /// began.
    pub(crate) fn new(null: OwnedFd, started_ns: u64) -> Result<Self, Fatal> {
        let agent = Self {
            poll: Poll::new()?,
            connection: connect(started_ns)?,
            is_template: false,
            children: sys::signals::block_sigchld()?,
            null,
            pidfd: pidfd_open(getpid(), PidfdFlags::empty())?,
            files: None,
            containers: BTreeMap::new(),
            processes: BTreeMap::new(),
            host: Host::default(),
            streams: Streams::default(),
            queries: Queries::default(),
            cpus: Cpus::new(),
            buffer: vec![0; CHUNK],
        };
        agent.watch_connection()?;
        agent.poll.add(&agent.children, Source::Children, EventFlags::IN)?;
        Ok(agent)
    }

    fn watch_connection(&self) -> Result<(), Errno> {
        let both = EventFlags::IN | EventFlags::OUT;
        self.poll.add(&self.connection, Source::Control, both)
    }

    /// Connects to the VMM of a machine that has started from a template. The end of the old connection is the first that the agent
    /// notices of its new machine.
    fn connect_again(&mut self) -> Result<(), Fatal> {
        self.is_template = false;
        self.connection = connect(clock::uptime_ns())?;
        Ok(self.watch_connection()?)
    }

    /// Serves the VMM until the connection ends.
    pub(crate) fn run(mut self) -> Result<std::convert::Infallible, Fatal> {
        // The request for the first container is probably on its way. Mounting now saves time when it arrives.
        log::warn(self.mount_file_systems());
        let mut events = Vec::with_capacity(MAX_EVENTS);
        loop {
            let busy = self.streams.has_ready() || self.cpus.are_changing();
            self.poll.wait(&mut events, !busy)?;
            for id in self.streams.take_ready() {
                self.advance_stream(id);
            }
            for event in events.drain(..) {
                self.dispatch(event)?;
            }
            self.report_exits()?;
            self.answer_freezes()?;
            self.cpus.step();
            self.answer_cpu_changes()?;
        }
    }

    fn dispatch(&mut self, event: Event) -> Result<(), Fatal> {
        let flags = event.flags;
        match Source::of(event) {
            Some(Source::Control) => self.serve_connection(flags)?,
            Some(Source::Children) => self.reap()?,
            Some(Source::Report(pid)) => self.receive_reports(pid.cast_signed())?,
            Some(Source::Stream(id)) if flags.contains(EventFlags::ERR) => self.end_stream(id),
            Some(Source::Stream(id)) => self.advance_stream(id),
            Some(Source::Memory(pid)) => self.report_oom_kill(pid.cast_signed())?,
            Some(Source::Listener(id)) => self.accept(id),
            Some(Source::Queries(id)) => self.receive_queries(id),
            Some(Source::Answer(id)) => self.receive_answer(id),
            // The loop checks after every wait whether a cgroup reached the awaited state.
            Some(Source::Cgroup) | None => {}
        }
        Ok(())
    }

    fn serve_connection(&mut self, flags: EventFlags) -> Result<(), Fatal> {
        if self.is_template && flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            return self.connect_again();
        }
        self.connection.flush()?;
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            for call in self.connection.receive()? {
                self.handle(call)?;
            }
        }
        Ok(())
    }

    fn answer_cpu_changes(&mut self) -> Result<(), Fatal> {
        let (calls, result) = self.cpus.take_completed();
        for call in calls {
            self.reply(call, result.clone().map(|()| Response::Done))?;
        }
        Ok(())
    }

    /// Mounts the file systems that the agent works with, unless they are mounted.
    fn mount_file_systems(&mut self) -> Result<(), Error> {
        if self.files.is_none() {
            self.files = Some(FileSystems::mount()?);
        }
        Ok(())
    }
}

/// Connects to the VMM and sends [`Hello`]. `started_ns` is the uptime when the agent began.
fn connect(started_ns: u64) -> Result<Connection, ConnectionError> {
    let mut connection = Connection::open()?;
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let hello = Hello { version: agent::VERSION, kernel, started_ns, ready_ns: clock::uptime_ns() };
    connection.send(&FromAgent::Hello(hello))?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error;

    #[test]
    fn a_chain_of_errors_is_one_line() {
        let error = Fatal::from(Error::on("mount", "/proc")(Errno::NODEV));
        assert_eq!(error::chain(&error), "set up the machine: mount /proc: No such device (os error 19)");
    }
}
