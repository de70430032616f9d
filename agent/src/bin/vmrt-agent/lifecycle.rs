//! What becomes of processes: reports of new ones, streams, and the end.

use std::os::fd::AsFd;

use agent::{Event, ExitStatus, Failure, FromAgent, Response};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::process::{PidfdGetfdFlags, WaitOptions};

use crate::container::report::Report;
use crate::container::scheduling;
use crate::error::Error;
use crate::event_loop::{self, Agent, Fatal, Source, Stream};
use crate::log::{self, Level};
use crate::processes::{self, Phase};
use crate::requests;
use crate::streams::{Progress, Pump};

impl Agent {
    /// Reads what the process `pid` reports.
    pub(crate) fn report(&mut self, pid: i32) -> Result<(), Fatal> {
        while let Some(process) = self.processes.get_mut(&pid) {
            let Some(channel) = &process.channel else { break };
            match channel.receive() {
                Ok(Some(Report::Ready { terminal })) => self.ready(pid, terminal)?,
                Ok(Some(Report::Failed(failure))) => process.failure = Some(failure),
                Err(Errno::AGAIN) => break,
                Ok(None) | Err(_) => {
                    process.channel = None;
                    self.executed(pid)?;
                }
            }
        }
        Ok(())
    }

    /// The process is set up. A container's first one now waits, any other goes on.
    fn ready(&mut self, pid: i32, terminal: Option<i32>) -> Result<(), Fatal> {
        if let Err(error) = self.open_terminal(pid, terminal).and_then(|()| self.make_usual(pid)) {
            self.give_up(pid, error);
            return Ok(());
        }
        let Some(process) = self.processes.get_mut(&pid) else { return Ok(()) };
        let Phase::SettingUp { call } = process.phase else { return Ok(()) };
        if process.id.exec.is_none() {
            process.phase = Phase::Created;
            self.reply(call, Ok(Response::Process { pid }))?;
            self.cpus.begin();
            return Ok(());
        }
        process.phase = Phase::Starting { call };
        // A process that died meanwhile is noticed by its end.
        let _ = process.channel.as_ref().map(|channel| channel.release());
        Ok(())
    }

    /// A process that is set up stops running before others.
    fn make_usual(&self, pid: i32) -> Result<(), Error> {
        match self.processes.get(&pid).is_some_and(|process| process.usual) {
            true => scheduling::make_usual(pid),
            false => Ok(()),
        }
    }

    fn open_terminal(&mut self, pid: i32, number: Option<i32>) -> Result<(), Error> {
        let process = self.processes.get_mut(&pid);
        let Some((process, number)) = process.zip(number) else { return Ok(()) };
        let Some(host) = process.terminal.take() else { return Ok(()) };
        let master = rustix::process::pidfd_getfd(&process.pidfd, number, PidfdGetfdFlags::empty());
        let master = master.map_err(Error::at("take over the terminal"))?;
        let (output, input) = processes::terminal_pumps(master, host)?;
        let output = self.add_output(output, pid)?;
        let input = self.add_stream(input, pid)?;
        for (id, sibling) in [(output, input), (input, output)] {
            self.streams.entry(id).and_modify(|stream| stream.sibling = Some(sibling));
        }
        Ok(())
    }

    /// Ends a process that cannot be used; its end answers the call that asked for it.
    pub(crate) fn give_up(&mut self, pid: i32, error: Error) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.failure = Some(error.into());
            // Fails only for a process that has ended by itself.
            let _ = rustix::process::pidfd_send_signal(&process.pidfd, rustix::process::Signal::KILL);
        }
    }

    /// The process's end of the channel is closed: by the execution of its program, or by its death.
    fn executed(&mut self, pid: i32) -> Result<(), Fatal> {
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

    /// Takes the status of every process that ended, the agent's own and orphans of containers.
    pub(crate) fn reap(&mut self) -> Result<(), Fatal> {
        // The descriptor is level-triggered, so that what is pending has to be read.
        let _ = rustix::io::read(&self.children, &mut [0_u8; 1024]);
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get();
            self.report(pid)?;
            if let Some(process) = self.processes.get_mut(&pid) {
                process.status = Some(processes::exit_status(status));
                self.begin_end(pid)?;
            }
        }
        Ok(())
    }

    /// The process is dead: answers who waits for it to start, and sees to it that what it wrote is delivered.
    fn begin_end(&mut self, pid: i32) -> Result<(), Fatal> {
        let Some(process) = self.processes.get_mut(&pid) else { return Ok(()) };
        let is_init = process.id.exec.is_none();
        let outputs = process.outputs.clone();
        for id in &outputs {
            self.streams.entry(*id).and_modify(|stream| stream.pump.begin_drain());
        }
        if is_init {
            self.end_container(pid);
        }
        for id in outputs {
            self.pump(id)?;
        }
        Ok(())
    }

    /// Nothing of a container outlives its first process. The kernel sees to that where the container has a pid
    /// namespace; otherwise the agent does.
    fn end_container(&mut self, pid: i32) {
        let container = self.containers.values().find(|container| container.init == Some(pid));
        if let Some(Err(error)) = container.map(|container| container.cgroup.kill()) {
            log::line(Level::Warning, format_args!("kill the rest of a container: {error}"));
        }
    }

    /// Tells the end of every process that has nothing left to deliver or to clear away. Any event can have been the
    /// last one that was waited for: an end, a slow reader's progress, the death of a container's last process.
    pub(crate) fn finish_ended(&mut self) -> Result<(), Fatal> {
        let ended: Vec<_> = self.processes.iter().filter_map(|(pid, process)| Some((*pid, process.status?))).collect();
        for (pid, status) in ended {
            if self.is_drained(pid) && self.clear_away(pid)? {
                self.finish(pid, status)?;
            }
        }
        Ok(())
    }

    fn is_drained(&self, pid: i32) -> bool {
        let outputs = self.processes.get(&pid).map(|process| process.outputs.as_slice()).unwrap_or_default();
        outputs.iter().filter_map(|id| self.streams.get(id)).all(|stream| stream.pump.is_drained())
    }

    /// Removes what a container leaves behind. False while some process of it is still dying.
    fn clear_away(&mut self, pid: i32) -> Result<bool, Fatal> {
        self.tell_out_of_memory(pid)?;
        let Some(container) = self.containers.values_mut().find(|container| container.init == Some(pid)) else {
            return Ok(true);
        };
        match container.cgroup.remove() {
            Err(Errno::BUSY) => {
                event_loop::warn(self.await_emptiness(pid));
                return Ok(false);
            }
            Err(error) => log::line(Level::Warning, format_args!("remove the cgroup of a container: {error}")),
            Ok(()) => {}
        }
        container.init = None;
        Ok(true)
    }

    /// Hears of it when the last process of an ended container is gone.
    fn await_emptiness(&mut self, pid: i32) -> Result<(), Error> {
        let mut containers = self.containers.iter().filter(|(_, container)| container.init == Some(pid));
        let Some((id, container)) = containers.next().filter(|(_, container)| container.emptying.is_none()) else {
            return Ok(());
        };
        let (id, events) = (id.clone(), container.cgroup.events());
        let events = events.map_err(Error::at(format!("watch the cgroup of container {id}")))?;
        self.watch(events.as_fd(), Source::Cgroup, EventFlags::PRI | EventFlags::ET)?;
        self.containers.entry(id).and_modify(|container| container.emptying = Some(events));
        Ok(())
    }

    /// Tells how a process ended, to whom waits for it to be made if it never was.
    fn finish(&mut self, pid: i32, status: ExitStatus) -> Result<(), Fatal> {
        let Some(process) = self.processes.remove(&pid) else { return Ok(()) };
        let failure = process.failure.unwrap_or_else(|| died(&requests::name(&process.id)));
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

    /// Tells that the kernel killed something in the container of this first process, if it did.
    pub(crate) fn tell_out_of_memory(&mut self, pid: i32) -> Result<(), Fatal> {
        let mut containers = self.containers.iter_mut();
        let Some((id, container)) = containers.find(|(_, container)| container.init == Some(pid)) else {
            return Ok(());
        };
        if container.cgroup.had_oom_kill() {
            let container = id.clone();
            self.connection.send(&FromAgent::Event(Event::OutOfMemory { container }))?;
        }
        Ok(())
    }

    /// Takes on an output stream of a process.
    pub(crate) fn add_output(&mut self, pump: Pump, pid: i32) -> Result<u32, Error> {
        let id = self.add_stream(pump, pid)?;
        if let Some(process) = self.processes.get_mut(&pid) {
            process.outputs.push(id);
        }
        Ok(id)
    }

    /// Takes on a stream of a process.
    pub(crate) fn add_stream(&mut self, pump: Pump, pid: i32) -> Result<u32, Error> {
        let id = self.take_stream_id();
        let source = Source::Stream(id);
        self.watch(pump.from(), source, EventFlags::IN | EventFlags::ET)?;
        self.watch(pump.to(), source, EventFlags::OUT | EventFlags::ET)?;
        self.streams.insert(id, Stream { pump, pid, sibling: None });
        Ok(id)
    }

    /// Lets a stream move what it can.
    pub(crate) fn pump(&mut self, id: u32) -> Result<(), Fatal> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        match stream.pump.turn(&mut self.chunk) {
            Progress::Waiting => {}
            Progress::More => self.eager.push(id),
            Progress::Finished => self.remove_stream(id),
        }
        Ok(())
    }

    /// One side of a stream is broken. What the other still holds is moved as far as possible.
    pub(crate) fn stream_failed(&mut self, id: u32) -> Result<(), Fatal> {
        self.pump(id)?;
        self.remove_stream(id);
        Ok(())
    }

    fn remove_stream(&mut self, id: u32) {
        let Some(stream) = self.streams.remove(&id) else { return };
        // Who reads at the other end of a connection learns of the end, though it may go on the other way round.
        let _ = rustix::net::shutdown(stream.pump.to(), rustix::net::Shutdown::Write);
        let Some(process) = self.processes.get_mut(&stream.pid) else { return };
        let is_output = process.outputs.contains(&id);
        process.outputs.retain(|output| *output != id);
        // Input that ended leaves a terminal open; output that ended is its hang-up.
        if let Some(sibling) = stream.sibling.filter(|_| is_output) {
            self.streams.remove(&sibling);
        }
    }
}

fn died(process: &str) -> Failure {
    Error::Died { step: format!("set up {process}") }.into()
}
