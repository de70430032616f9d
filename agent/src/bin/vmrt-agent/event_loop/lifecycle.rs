//! The life of processes: reports while they are set up, reaping, and the report of their end.

use agent::{Event, ExitStatus, Failure, FromAgent, Response};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::process::{PidfdGetfdFlags, Signal, WaitOptions, pidfd_getfd, pidfd_send_signal};

use super::{Agent, Fatal};
use crate::container::process::scheduling;
use crate::error::Error;
use crate::events::Source;
use crate::machine::log::{self, Level};
use crate::processes::channel::Report;
use crate::processes::{self, Phase, stdio};

impl Agent {
    /// Receives the reports of process `pid`.
    pub(super) fn receive_reports(&mut self, pid: i32) -> Result<(), Fatal> {
        while let Some(process) = self.processes.get_mut(&pid) {
            let Some(channel) = &process.channel else { break };
            match channel.receive() {
                Ok(Some(Report::Ready { terminal })) => self.on_ready(pid, terminal)?,
                Ok(Some(Report::Failed(failure))) => process.failure = Some(failure),
                Err(Errno::AGAIN) => break,
                Ok(None) | Err(_) => {
                    process.channel = None;
                    self.on_channel_closed(pid)?;
                }
            }
        }
        Ok(())
    }

    /// The process is set up. The first process of a container now waits for its start; a further process continues.
    fn on_ready(&mut self, pid: i32, terminal: Option<i32>) -> Result<(), Fatal> {
        if let Err(error) = self.open_terminal(pid, terminal).and_then(|()| self.set_normal_policy(pid)) {
            self.abort(pid, error);
            return Ok(());
        }
        let Some(process) = self.processes.get_mut(&pid) else { return Ok(()) };
        let Phase::SettingUp { call } = process.phase else { return Ok(()) };
        if process.id.exec.is_none() {
            process.phase = Phase::Created;
            self.reply(call, Ok(Response::Process { pid }))?;
            self.cpus.enable();
            return Ok(());
        }
        process.phase = Phase::Starting { call };
        // If the process has ended meanwhile, its end is reported.
        let _ = process.channel.as_ref().map(|channel| channel.release());
        Ok(())
    }

    /// Ends the real-time priority of a process that is set up.
    fn set_normal_policy(&self, pid: i32) -> Result<(), Error> {
        match self.processes.get(&pid).is_some_and(|process| process.normal_scheduling) {
            true => scheduling::set_normal_policy(pid),
            false => Ok(()),
        }
    }

    fn open_terminal(&mut self, pid: i32, number: Option<i32>) -> Result<(), Error> {
        let process = self.processes.get_mut(&pid);
        let Some((process, number)) = process.zip(number) else { return Ok(()) };
        let Some(host) = process.terminal.take() else { return Ok(()) };
        let master = pidfd_getfd(&process.pidfd, number, PidfdGetfdFlags::empty());
        let master = master.map_err(Error::at("take over the terminal"))?;
        let (output, input) = stdio::terminal_pumps(master, host)?;
        let output = self.add_output(output, pid)?;
        let input = self.streams.add(&self.poll, input, Some(pid))?;
        self.streams.pair(output, input);
        Ok(())
    }

    /// Kills a process that cannot be used. Its end answers the call that requested it.
    pub(super) fn abort(&mut self, pid: i32, error: Error) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.failure = Some(error.into());
            // Fails only if the process has already ended.
            let _ = pidfd_send_signal(&process.pidfd, Signal::KILL);
        }
    }

    /// The process's end of the channel is closed: it executed its program, or it ended.
    fn on_channel_closed(&mut self, pid: i32) -> Result<(), Fatal> {
        let Some(process) = self.processes.get_mut(&pid) else { return Ok(()) };
        if process.failure.is_some() {
            return Ok(());
        }
        if let Phase::Starting { call } = process.phase {
            process.phase = Phase::Running;
            let response = match process.id.exec {
                Some(_) => Response::Process { pid },
                None => Response::Done,
            };
            self.reply(call, Ok(response))?;
        }
        Ok(())
    }

    /// Reaps every process that ended: those that the agent made, and orphans of containers.
    pub(super) fn reap(&mut self) -> Result<(), Fatal> {
        // The descriptor is level-triggered, so pending signals have to be read.
        let _ = rustix::io::read(&self.children, &mut [0_u8; 1024]);
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get();
            self.receive_reports(pid)?;
            if let Some(process) = self.processes.get_mut(&pid) {
                process.status = Some(processes::exit_status(status));
                self.on_exit(pid);
            }
        }
        Ok(())
    }

    /// Begins the end of a process: its remaining output is delivered, and its container is ended if it was the first
    /// process.
    fn on_exit(&mut self, pid: i32) {
        let Some(process) = self.processes.get(&pid) else { return };
        let is_init = process.id.exec.is_none();
        let outputs = process.outputs.clone();
        for id in &outputs {
            self.streams.begin_drain(*id);
        }
        if is_init {
            self.kill_container(pid);
        }
        for id in outputs {
            self.advance_stream(id);
        }
    }

    /// No process of a container outlives the first one. The kernel ensures that in a pid namespace of the container's
    /// own; the agent ensures it in any other.
    fn kill_container(&mut self, init: i32) {
        let container = self.containers.values().find(|container| container.init == Some(init));
        if let Some(Err(error)) = container.map(|container| container.cgroup.kill()) {
            log::line(Level::Warning, format_args!("kill the remaining processes of a container: {error}"));
        }
    }

    /// Reports every ended process whose output is delivered and whose cgroup is removed. The loop calls this after
    /// every wait, because any event can complete the last of these conditions.
    pub(super) fn report_exits(&mut self) -> Result<(), Fatal> {
        let ended: Vec<_> = self.processes.iter().filter_map(|(pid, process)| Some((*pid, process.status?))).collect();
        for (pid, status) in ended {
            if self.is_drained(pid) && self.remove_cgroup(pid)? {
                self.report_exit(pid, status)?;
            }
        }
        Ok(())
    }

    fn is_drained(&self, pid: i32) -> bool {
        let outputs = self.processes.get(&pid).map(|process| process.outputs.as_slice()).unwrap_or_default();
        outputs.iter().filter_map(|id| self.streams.get(*id)).all(|stream| stream.pump.is_drained())
    }

    /// Removes the cgroup of the container whose first process is `pid`, if there is one. False while a process is in
    /// it.
    fn remove_cgroup(&mut self, pid: i32) -> Result<bool, Fatal> {
        self.report_oom_kill(pid)?;
        let Some(container) = self.containers.values_mut().find(|container| container.init == Some(pid)) else {
            return Ok(true);
        };
        match container.cgroup.remove() {
            Err(Errno::BUSY) => match self.watch_until_empty(pid) {
                // It may have become empty before the watch began.
                Ok(true) => return self.remove_cgroup(pid),
                Ok(false) => return Ok(false),
                Err(error) => {
                    log::warn(Err(error));
                    return Ok(false);
                }
            },
            Err(error) => log::line(Level::Warning, format_args!("remove the cgroup of a container: {error}")),
            Ok(()) => {}
        }
        container.init = None;
        Ok(true)
    }

    /// Watches for the end of the last process of a container whose first process has ended. Returns false if it was watched for
    /// before.
    fn watch_until_empty(&mut self, init: i32) -> Result<bool, Error> {
        let mut containers = self.containers.iter_mut().filter(|(_, container)| container.init == Some(init));
        let Some((id, container)) = containers.next().filter(|(_, container)| container.empty_events.is_none()) else {
            return Ok(false);
        };
        let events = container.cgroup.events().map_err(Error::at(format!("watch the cgroup of container {id}")))?;
        self.poll.watch(&events, Source::Cgroup, EventFlags::PRI)?;
        container.empty_events = Some(events);
        Ok(true)
    }

    /// Reports the end of a process: as the reply to the call that requested it if its program never ran, otherwise as
    /// an event.
    fn report_exit(&mut self, pid: i32, status: ExitStatus) -> Result<(), Fatal> {
        let Some(process) = self.processes.remove(&pid) else { return Ok(()) };
        let failure = process.failure.unwrap_or_else(|| ended_early(&processes::display_name(&process.id)));
        match process.phase {
            Phase::SettingUp { call } => {
                if process.id.exec.is_none() {
                    self.containers.remove(&process.id.container);
                }
                return Ok(self.reply(call, Err(failure))?);
            }
            Phase::Starting { call } => {
                self.reply(call, Err(failure))?;
                if process.id.exec.is_some() {
                    return Ok(());
                }
            }
            Phase::Created | Phase::Running => {}
        }
        Ok(self.connection.send(&FromAgent::Event(Event::Exited { process: process.id, status }))?)
    }

    /// Reports an OOM kill in the container whose first process is `init`, if there was one since the last call.
    pub(super) fn report_oom_kill(&mut self, init: i32) -> Result<(), Fatal> {
        let mut containers = self.containers.iter_mut();
        let Some((id, container)) = containers.find(|(_, container)| container.init == Some(init)) else {
            return Ok(());
        };
        if container.cgroup.had_oom_kill() {
            let container = id.clone();
            self.connection.send(&FromAgent::Event(Event::OutOfMemory { container }))?;
        }
        Ok(())
    }
}

fn ended_early(process: &str) -> Failure {
    Error::EndedEarly { step: format!("set up {process}") }.into()
}
