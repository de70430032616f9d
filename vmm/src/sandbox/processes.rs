//! The processes of the sandbox's containers: their state, their streams, and who waits for them.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use agent::{ExitStatus, ProcessId, Stdio, TerminalSize};

use super::clients::Caller;
use crate::control::{Status, StdioFds};
use crate::vsock::{Bridge, Flow, Ports};

/// Executed processes that ended without anybody having asked yet; the oldest is forgotten first.
const MAX_UNTOLD: usize = 256;

/// A process's connections to the host.
#[derive(Debug, Default)]
pub(super) struct Streams {
    ports: Vec<u32>,
    flows: Vec<Arc<Flow>>,
    /// The host's terminal, for its size.
    pub(super) terminal: Option<OwnedFd>,
}

impl Streams {
    /// Opens a port for each stream. There are as many descriptors as `stdio` says.
    pub(super) fn open(ports: &Ports, stdio: StdioFds, fds: Vec<OwnedFd>) -> (Self, Stdio) {
        let mut streams = Self::default();
        let mut fds = fds.into_iter();
        let mut listen = |source, sink| {
            let (port, flow) = ports.listen(Bridge::new(source, sink));
            streams.ports.push(port);
            streams.flows.push(flow);
            port
        };
        let stdio = match stdio {
            StdioFds::Terminal { size, bare_lines } => {
                let source = fds.next();
                let terminal = source.as_ref().and_then(|fd| fd.try_clone().ok());
                let stdio = Stdio::Terminal { port: listen(source, fds.next()), size, bare_lines };
                streams.terminal = terminal;
                stdio
            }
            StdioFds::Streams { stdin, stdout, stderr } => Stdio::Streams {
                stdin: stdin.then(|| listen(fds.next(), None)),
                stdout: stdout.then(|| listen(None, fds.next())),
                stderr: stderr.then(|| listen(None, fds.next())),
            },
        };
        (streams, stdio)
    }

    /// Closes what the guest has not connected to.
    fn close(&self, ports: &Ports) {
        self.ports.iter().for_each(|port| ports.close(*port));
    }

    fn is_drained(&self) -> bool {
        // The first that is not will tell when it is; then all are asked again.
        self.flows.iter().all(|flow| flow.is_drained())
    }
}

/// How far a process has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// The agent was asked to make it.
    Asked,
    Created,
    Running,
    Ended(ExitStatus),
}

#[derive(Debug)]
struct Process {
    state: State,
    streams: Streams,
    waiters: Vec<Caller>,
    /// The container of this first process is stopped where it is.
    paused: bool,
    /// Its end may be told: all its output was handed over.
    told: bool,
    /// Order of the ends, for forgetting the oldest.
    ended: u64,
}

impl Process {
    fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended(_))
    }
}

/// Why a process cannot be found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Absent {
    /// It was never made, or is forgotten.
    Unknown,
    /// It ended.
    Ended,
}

/// What there is to tell about a process.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Told {
    pub(super) process: ProcessId,
    pub(super) status: ExitStatus,
    pub(super) waiters: Vec<Caller>,
}

/// All processes that are not forgotten.
#[derive(Debug, Default)]
pub(super) struct Processes {
    known: BTreeMap<ProcessId, Process>,
    ends: u64,
}

impl Processes {
    /// Notes that a process is about to be made; false where there is one of that name.
    pub(super) fn add(&mut self, id: ProcessId, streams: Streams) -> bool {
        if self.is_taken(&id) {
            return false;
        }
        let process =
            Process { state: State::Asked, streams, waiters: Vec::new(), paused: false, told: false, ended: 0 };
        self.known.insert(id, process);
        true
    }

    /// Closes these ports with those of the process.
    pub(super) fn lend_ports(&mut self, id: &ProcessId, ports: impl Iterator<Item = u32>) {
        if let Some(process) = self.known.get_mut(id) {
            process.streams.ports.extend(ports);
        }
    }

    /// Whether the name is in use. An executed process that ended gives its name free.
    pub(super) fn is_taken(&self, id: &ProcessId) -> bool {
        self.known.get(id).is_some_and(|process| id.exec.is_none() || !process.told)
    }

    /// The agent made the process: a container's first one does not run its program yet.
    pub(super) fn made(&mut self, id: &ProcessId) {
        let state = if id.exec.is_none() { State::Created } else { State::Running };
        self.advance(id, state);
    }

    /// The container's program runs.
    pub(super) fn started(&mut self, id: &ProcessId) {
        self.advance(id, State::Running);
    }

    /// The container of this first process was stopped where it is, or goes on.
    pub(super) fn paused(&mut self, id: &ProcessId, paused: bool) {
        self.known.entry(id.clone()).and_modify(|process| process.paused = paused);
    }

    /// The agent could not make the process, or deleted it: whoever waits for it.
    pub(super) fn remove(&mut self, id: &ProcessId, ports: &Ports) -> Vec<Caller> {
        let Some(process) = self.known.remove(id) else { return Vec::new() };
        process.streams.close(ports);
        process.waiters
    }

    /// All that belongs to a container is gone: whoever waits for any of it.
    pub(super) fn remove_container(&mut self, container: &str, ports: &Ports) -> Vec<Caller> {
        let ids: Vec<_> = self.known.keys().filter(|id| id.container == container).cloned().collect();
        ids.iter().flat_map(|id| self.remove(id, ports)).collect()
    }

    /// The process ended. False where it is not known, or ended before.
    pub(super) fn ended(&mut self, id: &ProcessId, status: ExitStatus, ports: &Ports) -> bool {
        let Some(process) = self.known.get_mut(id).filter(|process| !process.has_ended()) else {
            return false;
        };
        process.state = State::Ended(status);
        self.ends += 1;
        process.ended = self.ends;
        process.streams.close(ports);
        true
    }

    /// Those that ended and whose output has all been handed over since.
    pub(super) fn tell(&mut self) -> Vec<Told> {
        let mut all = Vec::new();
        for (id, process) in &mut self.known {
            let State::Ended(status) = process.state else { continue };
            if !process.told && process.streams.is_drained() {
                process.told = true;
                let waiters = std::mem::take(&mut process.waiters);
                all.push(Told { process: id.clone(), status, waiters });
            }
        }
        // One that is told is of no more use, except a container's first: its status is asked for again.
        for told in all.iter().filter(|told| told.process.exec.is_some() && !told.waiters.is_empty()) {
            self.known.remove(&told.process);
        }
        self.forget_oldest();
        all
    }

    /// Waits for a process: its status where that can be told already.
    pub(super) fn wait(&mut self, id: &ProcessId, caller: Caller) -> Result<Option<ExitStatus>, Absent> {
        let process = self.known.get_mut(id).ok_or(Absent::Unknown)?;
        match process.state {
            State::Ended(status) if process.told => {
                if id.exec.is_some() {
                    self.known.remove(id);
                }
                Ok(Some(status))
            }
            _ => {
                process.waiters.push(caller);
                Ok(None)
            }
        }
    }

    /// A client left.
    pub(super) fn forget_client(&mut self, client: u32) {
        for process in self.known.values_mut() {
            process.waiters.retain(|waiter| waiter.client != client);
        }
    }

    /// State of a container: of its first process.
    pub(super) fn status(&self, id: &ProcessId) -> Option<Status> {
        let process = self.known.get(id)?;
        match process.state {
            State::Asked => None,
            State::Created | State::Running if process.paused => Some(Status::Paused),
            State::Created => Some(Status::Created),
            State::Running => Some(Status::Running),
            State::Ended(status) => Some(Status::Stopped(status)),
        }
    }

    /// Whether the process is there to be signalled.
    pub(super) fn check_alive(&self, id: &ProcessId) -> Result<(), Absent> {
        match self.known.get(id).map(|process| process.state) {
            None => Err(Absent::Unknown),
            Some(State::Ended(_)) => Err(Absent::Ended),
            Some(_) => Ok(()),
        }
    }

    /// How a process ended, whether or not that may be told yet.
    pub(super) fn end_of(&self, id: &ProcessId) -> Option<ExitStatus> {
        match self.known.get(id)?.state {
            State::Ended(status) => Some(status),
            _ => None,
        }
    }

    /// Whether more ends are about to be told: of a process whose output is still being handed over, or of one that was
    /// executed in a container that ended, and so died with it.
    pub(super) fn is_draining(&self) -> bool {
        let dead = |id: &ProcessId| id.exec.is_some() && self.has_ended(&id.container);
        self.known.iter().any(|(id, process)| !process.told && (process.has_ended() || dead(id)))
    }

    fn has_ended(&self, container: &str) -> bool {
        let init = ProcessId { container: container.to_owned(), exec: None };
        self.known.get(&init).is_some_and(Process::has_ended)
    }

    /// Whether nothing that any process wrote waits for its reader.
    pub(super) fn is_drained(&self) -> bool {
        self.known.values().all(|process| process.streams.is_drained())
    }

    /// Everybody who waits for a process that will never be heard of again.
    pub(super) fn abandon(&mut self) -> Vec<Caller> {
        let lost = self.known.values_mut().filter(|process| !process.has_ended());
        lost.flat_map(|process| std::mem::take(&mut process.waiters)).collect()
    }

    /// The size of the terminal the process's streams lead to.
    pub(super) fn terminal_size(&self, id: &ProcessId) -> Option<TerminalSize> {
        window_size(self.known.get(id)?.streams.terminal.as_ref()?)
    }

    /// An event that comes before the reply it belongs to is not undone by it.
    fn advance(&mut self, id: &ProcessId, state: State) {
        if let Some(process) = self.known.get_mut(id).filter(|process| !process.has_ended()) {
            process.state = state;
        }
    }

    fn forget_oldest(&mut self) {
        let untold = |(id, process): &(&ProcessId, &Process)| id.exec.is_some() && process.told;
        if self.known.iter().filter(untold).count() > MAX_UNTOLD
            && let Some((id, _)) = self.known.iter().filter(untold).min_by_key(|(_, process)| process.ended)
        {
            let id = id.clone();
            self.known.remove(&id);
        }
    }
}

mod ioctl {
    nix::ioctl_read_bad!(get_window_size, libc::TIOCGWINSZ, libc::winsize);
}

pub(super) fn window_size(terminal: &OwnedFd) -> Option<TerminalSize> {
    use std::os::fd::AsRawFd;
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open, and the structure is what this request fills.
    unsafe { ioctl::get_window_size(terminal.as_raw_fd(), &raw mut size) }.ok()?;
    Some(TerminalSize { rows: size.ws_row, columns: size.ws_col })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: Caller = Caller { client: 16, id: 1 };

    fn id(exec: Option<&str>) -> ProcessId {
        ProcessId { container: "c".into(), exec: exec.map(Into::into) }
    }

    fn processes() -> (Processes, Ports) {
        let mut processes = Processes::default();
        assert!(processes.add(id(None), Streams::default()));
        processes.made(&id(None));
        (processes, Ports::new().unwrap())
    }

    #[test]
    fn an_end_is_told_to_those_who_wait_and_those_who_come_later() {
        let (mut processes, ports) = processes();
        assert_eq!(processes.wait(&id(None), NOBODY), Ok(None));
        processes.started(&id(None));
        assert_eq!(processes.status(&id(None)), Some(Status::Running));
        assert!(processes.ended(&id(None), ExitStatus::Exited(3), &ports));
        assert!(!processes.ended(&id(None), ExitStatus::Exited(4), &ports), "nobody ends twice");
        assert_eq!(processes.tell()[0].waiters, [NOBODY]);
        assert!(processes.tell().is_empty());
        processes.started(&id(None));
        assert_eq!(processes.status(&id(None)), Some(Status::Stopped(ExitStatus::Exited(3))));
        assert_eq!(processes.wait(&id(None), NOBODY), Ok(Some(ExitStatus::Exited(3))));
    }

    #[test]
    fn an_executed_process_is_forgotten_when_it_was_told() {
        let (mut processes, ports) = processes();
        for waits_first in [true, false] {
            assert!(processes.add(id(Some("e")), Streams::default()));
            assert!(!processes.add(id(Some("e")), Streams::default()), "the name is taken");
            if waits_first {
                assert_eq!(processes.wait(&id(Some("e")), NOBODY), Ok(None));
            }
            processes.ended(&id(Some("e")), ExitStatus::Signaled(9), &ports);
            assert_eq!(processes.tell().len(), 1);
            if !waits_first {
                assert_eq!(processes.wait(&id(Some("e")), NOBODY), Ok(Some(ExitStatus::Signaled(9))));
            }
            assert_eq!(processes.wait(&id(Some("e")), NOBODY), Err(Absent::Unknown));
        }
    }

    #[test]
    fn ends_nobody_asks_about_are_bounded() {
        let (mut processes, ports) = processes();
        for number in 0..2 * MAX_UNTOLD {
            let exec = id(Some(&number.to_string()));
            processes.add(exec.clone(), Streams::default());
            processes.ended(&exec, ExitStatus::Exited(0), &ports);
            processes.tell();
        }
        assert_eq!(processes.known.len(), 1 + MAX_UNTOLD);
        assert_eq!(processes.wait(&id(Some("0")), NOBODY), Err(Absent::Unknown), "the oldest went first");
        assert!(processes.wait(&id(Some("511")), NOBODY).is_ok());
    }

    #[test]
    fn a_process_that_failed_gives_its_descriptors_back() {
        let (mut processes, ports) = processes();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let stdio = StdioFds::Streams { stdin: false, stdout: true, stderr: false };
        let (streams, stdio) = Streams::open(&ports, stdio, vec![writer.into()]);
        assert!(matches!(stdio, Stdio::Streams { stdin: None, stdout: Some(_), stderr: None }));
        processes.add(id(Some("e")), streams);
        processes.wait(&id(Some("e")), NOBODY).unwrap();
        assert_eq!(processes.remove_container("c", &ports), [NOBODY]);
        assert_eq!(std::io::Read::read(&mut reader, &mut [0; 1]).unwrap(), 0);
    }
}
