//! The processes of the sandbox's containers: their state, their streams, and the callers that wait for them.

use std::collections::BTreeMap;

use agent::{ExitStatus, ProcessId, TerminalSize};

use super::first_process;
use super::streams::Streams;
use crate::control::Status;
use crate::sandbox::clients::Caller;
use crate::vsock::Ports;

/// Most executed processes that are kept after their end because no client has asked for their status. The one that ended
/// first is removed first.
const MAX_UNCOLLECTED: usize = 256;

/// State of a process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// The agent has not answered the request that creates the process.
    Requested,
    Created,
    Running,
    Ended(ExitStatus),
}

#[derive(Debug)]
struct Process {
    state: State,
    streams: Streams,
    waiters: Vec<Caller>,
    /// The container of this first process is frozen.
    paused: bool,
    /// All its output was written, so that its exit status may be reported.
    reported: bool,
    /// Position in the order in which processes ended.
    end_order: u64,
}

impl Process {
    fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended(_))
    }
}

/// Why a process does not run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::sandbox) enum Absent {
    /// It was never created, or was removed.
    Unknown,
    /// It ended.
    Ended,
}

/// An exit status that may be reported, and the callers that wait for it.
#[derive(Debug, Eq, PartialEq)]
pub(in crate::sandbox) struct ExitReport {
    pub(in crate::sandbox) process: ProcessId,
    pub(in crate::sandbox) status: ExitStatus,
    pub(in crate::sandbox) waiters: Vec<Caller>,
}

/// The processes that were not removed.
#[derive(Debug, Default)]
pub(in crate::sandbox) struct ProcessTable {
    processes: BTreeMap<ProcessId, Process>,
    /// How many processes have ended.
    ended_count: u64,
}

impl ProcessTable {
    /// Adds a process that the agent is asked to create. Returns false if the id is in use.
    pub(in crate::sandbox) fn add(&mut self, id: ProcessId, streams: Streams) -> bool {
        if self.is_taken(&id) {
            return false;
        }
        let process = Process {
            state: State::Requested,
            streams,
            waiters: Vec::new(),
            paused: false,
            reported: false,
            end_order: 0,
        };
        self.processes.insert(id, process);
        true
    }

    /// Adds ports that are closed with those of the process's streams.
    pub(in crate::sandbox) fn add_ports(&mut self, id: &ProcessId, ports: impl Iterator<Item = u32>) {
        if let Some(process) = self.processes.get_mut(id) {
            process.streams.add_ports(ports);
        }
    }

    /// Whether the id is in use. The id of an executed process is free again when its exit status was reported.
    pub(in crate::sandbox) fn is_taken(&self, id: &ProcessId) -> bool {
        self.processes.get(id).is_some_and(|process| id.exec.is_none() || !process.reported)
    }

    /// The agent created the process. A container's first process does not run its program yet.
    pub(in crate::sandbox) fn set_created(&mut self, id: &ProcessId) {
        let state = if id.exec.is_none() { State::Created } else { State::Running };
        self.set_state(id, state);
    }

    /// The first process of a container executes the container's program.
    pub(in crate::sandbox) fn set_running(&mut self, id: &ProcessId) {
        self.set_state(id, State::Running);
    }

    /// The container of this first process was frozen or thawed.
    pub(in crate::sandbox) fn set_paused(&mut self, id: &ProcessId, paused: bool) {
        self.processes.entry(id.clone()).and_modify(|process| process.paused = paused);
    }

    /// Records the exit status. Returns false if the process is unknown or has already ended.
    pub(in crate::sandbox) fn set_ended(&mut self, id: &ProcessId, status: ExitStatus, ports: &Ports) -> bool {
        let Some(process) = self.processes.get_mut(id).filter(|process| !process.has_ended()) else {
            return false;
        };
        process.state = State::Ended(status);
        self.ended_count += 1;
        process.end_order = self.ended_count;
        process.streams.close(ports);
        true
    }

    /// Removes a process that the agent could not create, or that was deleted. Returns its waiting callers.
    pub(in crate::sandbox) fn remove(&mut self, id: &ProcessId, ports: &Ports) -> Vec<Caller> {
        let Some(process) = self.processes.remove(id) else { return Vec::new() };
        process.streams.close(ports);
        process.waiters
    }

    /// Removes all processes of a container. Returns the callers that wait for any of them.
    pub(in crate::sandbox) fn remove_container(&mut self, container: &str, ports: &Ports) -> Vec<Caller> {
        let ids: Vec<_> = self.processes.keys().filter(|id| id.container == container).cloned().collect();
        ids.iter().flat_map(|id| self.remove(id, ports)).collect()
    }

    /// Removes the waiters of a client that disconnected.
    pub(in crate::sandbox) fn remove_client(&mut self, client: u32) {
        for process in self.processes.values_mut() {
            process.waiters.retain(|waiter| waiter.client != client);
        }
    }

    /// The exit statuses that may be reported now: of processes that ended and whose output was all written. Each is
    /// returned once.
    pub(in crate::sandbox) fn take_exit_reports(&mut self) -> Vec<ExitReport> {
        let mut reports = Vec::new();
        for (id, process) in &mut self.processes {
            let State::Ended(status) = process.state else { continue };
            if !process.reported && process.streams.is_drained() {
                process.reported = true;
                let waiters = std::mem::take(&mut process.waiters);
                reports.push(ExitReport { process: id.clone(), status, waiters });
            }
        }
        // An executed process is removed when a client got its status. The status of a container's first process can be
        // asked for again.
        for report in reports.iter().filter(|report| report.process.exec.is_some() && !report.waiters.is_empty()) {
            self.processes.remove(&report.process);
        }
        self.remove_oldest_uncollected();
        reports
    }

    /// Waits for a process. Returns its exit status if that may be reported already.
    ///
    /// # Errors
    /// [`Absent::Unknown`] if there is no such process.
    pub(in crate::sandbox) fn wait(&mut self, id: &ProcessId, caller: Caller) -> Result<Option<ExitStatus>, Absent> {
        let process = self.processes.get_mut(id).ok_or(Absent::Unknown)?;
        match process.state {
            State::Ended(status) if process.reported => {
                if id.exec.is_some() {
                    self.processes.remove(id);
                }
                Ok(Some(status))
            }
            _ => {
                process.waiters.push(caller);
                Ok(None)
            }
        }
    }

    /// Removes and returns the callers that wait for processes that have not ended.
    pub(in crate::sandbox) fn take_waiters(&mut self) -> Vec<Caller> {
        let running = self.processes.values_mut().filter(|process| !process.has_ended());
        running.flat_map(|process| std::mem::take(&mut process.waiters)).collect()
    }

    /// The status of a container, which is that of its first process `id`. `None` until the agent created it.
    pub(in crate::sandbox) fn status(&self, id: &ProcessId) -> Option<Status> {
        let process = self.processes.get(id)?;
        match process.state {
            State::Requested => None,
            State::Created | State::Running if process.paused => Some(Status::Paused),
            State::Created => Some(Status::Created),
            State::Running => Some(Status::Running),
            State::Ended(status) => Some(Status::Stopped(status)),
        }
    }

    /// Checks that a process is known and has not ended.
    ///
    /// # Errors
    /// The process is unknown or has ended.
    pub(in crate::sandbox) fn check_alive(&self, id: &ProcessId) -> Result<(), Absent> {
        match self.processes.get(id).map(|process| process.state) {
            None => Err(Absent::Unknown),
            Some(State::Ended(_)) => Err(Absent::Ended),
            Some(_) => Ok(()),
        }
    }

    /// The exit status of a process, also if its output was not all written yet.
    pub(in crate::sandbox) fn exit_status(&self, id: &ProcessId) -> Option<ExitStatus> {
        match self.processes.get(id)?.state {
            State::Ended(status) => Some(status),
            _ => None,
        }
    }

    /// Whether more exit reports follow soon: of processes that ended and whose output is still being written, and of
    /// executed processes whose container ended, because the kernel kills them with it.
    pub(in crate::sandbox) fn is_draining(&self) -> bool {
        let is_killed = |id: &ProcessId| id.exec.is_some() && self.has_container_ended(&id.container);
        self.processes.iter().any(|(id, process)| !process.reported && (process.has_ended() || is_killed(id)))
    }

    /// Whether the output of all processes was written.
    pub(in crate::sandbox) fn is_drained(&self) -> bool {
        self.processes.values().all(|process| process.streams.is_drained())
    }

    /// The size of the host's terminal that the process's streams lead to.
    pub(in crate::sandbox) fn terminal_size(&self, id: &ProcessId) -> Option<TerminalSize> {
        self.processes.get(id)?.streams.terminal_size()
    }

    fn has_container_ended(&self, container: &str) -> bool {
        self.processes.get(&first_process(container)).is_some_and(Process::has_ended)
    }

    /// The event of a process's end may precede the reply to the request that started it: an ended process stays ended.
    fn set_state(&mut self, id: &ProcessId, state: State) {
        if let Some(process) = self.processes.get_mut(id).filter(|process| !process.has_ended()) {
            process.state = state;
        }
    }

    fn remove_oldest_uncollected(&mut self) {
        let uncollected = |(id, process): &(&ProcessId, &Process)| id.exec.is_some() && process.reported;
        if self.processes.iter().filter(uncollected).count() > MAX_UNCOLLECTED
            && let Some((id, _)) =
                self.processes.iter().filter(uncollected).min_by_key(|(_, process)| process.end_order)
        {
            let id = id.clone();
            self.processes.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use agent::Stdio;

    use super::*;
    use crate::control::StdioFds;

    const CALLER: Caller = Caller { client: 16, id: 1 };

    fn id(exec: Option<&str>) -> ProcessId {
        ProcessId { container: "c".into(), exec: exec.map(Into::into) }
    }

    fn created_container() -> (ProcessTable, Ports) {
        let mut processes = ProcessTable::default();
        assert!(processes.add(id(None), Streams::default()));
        processes.set_created(&id(None));
        (processes, Ports::new().unwrap())
    }

    #[test]
    fn an_exit_status_is_reported_to_waiting_and_to_later_callers() {
        let (mut processes, ports) = created_container();
        assert_eq!(processes.wait(&id(None), CALLER), Ok(None));
        processes.set_running(&id(None));
        assert_eq!(processes.status(&id(None)), Some(Status::Running));
        assert!(processes.set_ended(&id(None), ExitStatus::Exited(3), &ports));
        assert!(!processes.set_ended(&id(None), ExitStatus::Exited(4), &ports), "a process ends once");
        assert_eq!(processes.take_exit_reports()[0].waiters, [CALLER]);
        assert!(processes.take_exit_reports().is_empty());
        processes.set_running(&id(None));
        assert_eq!(processes.status(&id(None)), Some(Status::Stopped(ExitStatus::Exited(3))));
        assert_eq!(processes.wait(&id(None), CALLER), Ok(Some(ExitStatus::Exited(3))));
    }

    #[test]
    fn an_executed_process_is_removed_when_its_status_was_reported() {
        let (mut processes, ports) = created_container();
        for waits_first in [true, false] {
            assert!(processes.add(id(Some("e")), Streams::default()));
            assert!(!processes.add(id(Some("e")), Streams::default()), "the id is in use");
            if waits_first {
                assert_eq!(processes.wait(&id(Some("e")), CALLER), Ok(None));
            }
            processes.set_ended(&id(Some("e")), ExitStatus::Signaled(9), &ports);
            assert_eq!(processes.take_exit_reports().len(), 1);
            if !waits_first {
                assert_eq!(processes.wait(&id(Some("e")), CALLER), Ok(Some(ExitStatus::Signaled(9))));
            }
            assert_eq!(processes.wait(&id(Some("e")), CALLER), Err(Absent::Unknown));
        }
    }

    #[test]
    fn uncollected_exit_statuses_are_bounded() {
        let (mut processes, ports) = created_container();
        for number in 0..2 * MAX_UNCOLLECTED {
            let exec = id(Some(&number.to_string()));
            processes.add(exec.clone(), Streams::default());
            processes.set_ended(&exec, ExitStatus::Exited(0), &ports);
            processes.take_exit_reports();
        }
        assert_eq!(processes.processes.len(), 1 + MAX_UNCOLLECTED);
        assert_eq!(processes.wait(&id(Some("0")), CALLER), Err(Absent::Unknown), "the oldest is removed first");
        assert!(processes.wait(&id(Some("511")), CALLER).is_ok());
    }

    #[test]
    fn a_removed_process_closes_its_descriptors() {
        let (mut processes, ports) = created_container();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let stdio = StdioFds::Streams { stdin: false, stdout: true, stderr: false };
        let (streams, stdio) = Streams::open(&ports, stdio, vec![writer.into()]);
        assert!(matches!(stdio, Stdio::Streams { stdin: None, stdout: Some(_), stderr: None }));
        processes.add(id(Some("e")), streams);
        processes.wait(&id(Some("e")), CALLER).unwrap();
        assert_eq!(processes.remove_container("c", &ports), [CALLER]);
        assert_eq!(std::io::Read::read(&mut reader, &mut [0; 1]).unwrap(), 0);
    }
}
