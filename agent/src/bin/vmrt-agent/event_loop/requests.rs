//! Requests of the VMM: dispatch, replies, and the short ones.

use agent::{Call, ContainerRequest, Failure, FromAgent, ProcessId, Request, Response, TerminalSize};

use super::connection::ConnectionError;
use super::{Agent, Fatal};
use crate::container::process::terminal;
use crate::error::Error;
use crate::machine::{self, clock, random};
use crate::processes::{Phase, Process, display_name};

/// The answer to a call.
pub(super) enum Answer {
    /// The request is done.
    Now(Response),
    /// The reply follows when the requested change has happened.
    Later,
}

impl Agent {
    /// Handles a call, and replies unless the reply has to wait.
    pub(super) fn handle(&mut self, call: Call) -> Result<(), Fatal> {
        let result = match call.request {
            Request::SetStreamSecret { secret } => {
                self.host.set_secret(secret);
                Ok(Answer::Now(Response::Done))
            }
            Request::SeedRandom { seed } => random::seed(&seed).map(|()| Answer::Now(Response::Done)),
            Request::PrepareTemplate => {
                self.is_template = true;
                Ok(Answer::Now(Response::Done))
            }
            Request::Create(create) => self.create(call.id, &create),
            Request::AddInterface { container, interface, name_server } => {
                self.add_interface(&container, &interface, name_server)
            }
            Request::Container(request) => self.handle_container_request(call.id, request),
            Request::Exec(exec) => self.exec(call.id, &exec),
            Request::SetCpus { count } => {
                self.cpus.request(call.id, count);
                Ok(Answer::Later)
            }
            Request::ReadClock => Ok(Answer::Now(Response::Clock { guest_ns: clock::time_ns() })),
            Request::AdjustClock { offset_ns, set } => {
                clock::adjust(offset_ns, set).map(|()| Answer::Now(Response::Done))
            }
            Request::SetPluggedMemory { plugged } => self.set_plugged_memory(plugged),
            Request::PowerOff => machine::power_off(),
        };
        match result {
            Ok(Answer::Later) => Ok(()),
            Ok(Answer::Now(response)) => Ok(self.reply(call.id, Ok(response))?),
            Err(error) => Ok(self.reply(call.id, Err(error.into()))?),
        }
    }

    /// Carries out a request of a client.
    fn handle_container_request(&mut self, call: u64, request: ContainerRequest) -> Result<Answer, Error> {
        match request {
            ContainerRequest::Start { container } => self.start(call, &container),
            ContainerRequest::Signal { process, signal, all } => self.signal(&process, signal, all),
            ContainerRequest::Resize { process, size } => self.resize(&process, size),
            ContainerRequest::Freeze { container, frozen } => self.freeze(call, &container, frozen),
            ContainerRequest::Processes { container } => self.list_processes(&container),
            ContainerRequest::Statistics { container } => self.read_statistics(&container),
            ContainerRequest::Update { container, resources } => self.update(&container, &resources),
            ContainerRequest::ChangeInterfaces { container, changes } => self.change_interfaces(&container, &changes),
            ContainerRequest::RemoveInterface { container, name } => self.remove_interface(&container, &name),
            ContainerRequest::Delete { container } => self.delete(&container),
        }
    }

    /// Sends the reply to call `id`.
    pub(super) fn reply(&mut self, id: u64, result: Result<Response, Failure>) -> Result<(), ConnectionError> {
        self.connection.send(&FromAgent::Reply { id, result })
    }

    fn start(&mut self, call: u64, id: &str) -> Result<Answer, Error> {
        self.init_of(id)?;
        self.cpus.complete_before_start();
        let process = self.processes.values_mut().find(|process| is_init(process, id));
        let process = process.ok_or_else(|| Error::NotFound(format!("container {id}")))?;
        let state = match process.phase {
            Phase::Created => "created",
            Phase::SettingUp { .. } => "being created",
            Phase::Starting { .. } | Phase::Running => "running",
        };
        let channel = process.channel.as_ref().filter(|_| matches!(process.phase, Phase::Created));
        let channel = channel.ok_or_else(|| Error::WrongState { container: format!("container {id}"), state })?;
        channel.release().map_err(Error::at(format!("start container {id}")))?;
        process.phase = Phase::Starting { call };
        Ok(Answer::Later)
    }

    fn resize(&mut self, process: &ProcessId, size: TerminalSize) -> Result<Answer, Error> {
        let terminal = self.process(process)?.outputs.first().and_then(|id| self.streams.get(*id));
        let terminal = terminal.filter(|stream| stream.opposite.is_some());
        let terminal = terminal.ok_or_else(|| Error::NotFound(format!("terminal of {}", display_name(process))))?;
        terminal::resize(terminal.pump.from(), size)
            .map_err(Error::at(format!("resize the terminal of {}", display_name(process))))?;
        Ok(Answer::Now(Response::Done))
    }

    fn delete(&mut self, id: &str) -> Result<Answer, Error> {
        let container = self.container(id)?;
        if container.init.is_some() {
            return Err(Error::WrongState { container: format!("container {id}"), state: "not stopped" });
        }
        self.containers.remove(id);
        Ok(Answer::Now(Response::Done))
    }
}

fn is_init(process: &Process, container: &str) -> bool {
    process.id.container == container && process.id.exec.is_none()
}
