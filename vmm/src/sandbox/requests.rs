//! What clients ask for.

use std::os::fd::OwnedFd;

use agent::{CreateContainer, Exec, Failure, FailureKind, ProcessId};
use event_manager::EventSet;
use oci_spec::runtime::{Process, Spec};

use super::clients::Caller;
use super::processes::{Absent, Streams};
use super::{Purpose, Sandbox, failure};
use crate::control::{Reply, Request, StdioFds};
use crate::timeline;

impl Sandbox {
    pub(super) fn accept(&mut self) {
        if let Err(error) = self.clients.accept(&self.listener) {
            tracing::warn!(%error, "cannot accept a control connection");
        }
    }

    pub(super) fn serve(&mut self, client: u32, events: EventSet) {
        if events.contains(EventSet::OUT) {
            self.clients.flush(client);
        }
        while let Some((caller, request)) = self.clients.next(client) {
            if let Some(result) = self.request(caller, request) {
                self.clients.answer(caller, result);
            }
        }
    }

    /// Carries a request out: its result, where that is known already.
    fn request(&mut self, caller: Caller, request: Request) -> Option<Result<Reply, Failure>> {
        match request {
            Request::AddShare { name, read_only } => {
                let root = self.clients.take_fds(caller, 1)?.pop()?;
                Some(self.add_share(&name, root, read_only))
            }
            Request::Create { container, spec, stdio } => {
                let fds = self.clients.take_fds(caller, stdio.count())?;
                self.create(caller, container, *spec, (stdio, fds))
            }
            Request::Exec { process, spec, stdio } => {
                let fds = self.clients.take_fds(caller, stdio.count())?;
                self.exec(caller, process, *spec, (stdio, fds))
            }
            Request::Wait { process } => self.wait(caller, &process),
            Request::Status { container } => Some(self.status(container)),
            Request::Timeline => Some(Ok(Reply::Timeline(timeline::stages()))),
            Request::RemoveShare { name } => {
                let removed = self.shares.remove(&name);
                Some(removed.map(|()| Reply::Done).map_err(|error| share_failure("take the share away", &error)))
            }
            Request::Configure(_) => {
                let cause = "only the first request of the inherited connection does that";
                Some(Err(failure(FailureKind::WrongState, "configure the sandbox", cause)))
            }
            request => self.relay(caller, request),
        }
    }

    fn add_share(&self, name: &str, root: OwnedFd, read_only: bool) -> Result<Reply, Failure> {
        let added = self.shares.add(name, root, read_only);
        added.map(|()| Reply::Done).map_err(|error| share_failure("share with the guest", &error))
    }

    fn create(
        &mut self,
        caller: Caller,
        container: String,
        spec: Spec,
        (stdio, fds): (StdioFds, Vec<OwnedFd>),
    ) -> Option<Result<Reply, Failure>> {
        let step = format!("create container {container}");
        let process = ProcessId { container: container.clone(), exec: None };
        let stdio = match self.open_streams(&process, &step, stdio, fds) {
            Ok(stdio) => stdio,
            Err(failure) => return Some(Err(failure)),
        };
        timeline::mark("container asked for");
        let request = agent::Request::Create(Box::new(CreateContainer { container, spec, stdio }));
        self.ask(request, step, Purpose::Make(caller, process));
        None
    }

    fn exec(
        &mut self,
        caller: Caller,
        process: ProcessId,
        spec: Process,
        (stdio, fds): (StdioFds, Vec<OwnedFd>),
    ) -> Option<Result<Reply, Failure>> {
        let step = format!("execute a process in container {}", process.container);
        let container = ProcessId { container: process.container.clone(), exec: None };
        let checked = match (self.processes.check_alive(&container), &process.exec) {
            (Err(absent), _) => Err(absent_failure(&container, absent)),
            (_, None) => Err(failure(FailureKind::InvalidSpec, step.as_str(), "the process has no id")),
            _ => self.open_streams(&process, &step, stdio, fds),
        };
        match checked {
            Ok(stdio) => {
                let request = agent::Request::Exec(Box::new(Exec { process: process.clone(), spec, stdio }));
                self.ask(request, step, Purpose::Make(caller, process));
                None
            }
            Err(failure) => Some(Err(failure)),
        }
    }

    fn open_streams(
        &mut self,
        process: &ProcessId,
        step: &str,
        stdio: StdioFds,
        fds: Vec<OwnedFd>,
    ) -> Result<agent::Stdio, Failure> {
        if let Some(failure) = &self.lost {
            return Err(failure.clone());
        }
        if self.processes.is_taken(process) {
            return Err(failure(FailureKind::Exists, step, "the id is in use"));
        }
        let (streams, stdio) = Streams::open(&self.ports, stdio, fds);
        self.processes.add(process.clone(), streams);
        Ok(stdio)
    }

    fn wait(&mut self, caller: Caller, process: &ProcessId) -> Option<Result<Reply, Failure>> {
        match self.processes.wait(process, caller) {
            Ok(Some(status)) => Some(Ok(Reply::Exited(status))),
            Ok(None) => self.lost.clone().map(Err),
            Err(absent) => Some(Err(absent_failure(process, absent))),
        }
    }

    fn status(&self, container: String) -> Result<Reply, Failure> {
        let process = ProcessId { container, exec: None };
        let status = self.processes.status(&process).map(Reply::Status);
        status.ok_or_else(|| absent_failure(&process, Absent::Unknown))
    }

    /// Requests that the agent carries out as they are.
    fn relay(&mut self, caller: Caller, request: Request) -> Option<Result<Reply, Failure>> {
        let init = |container: &String| ProcessId { container: container.clone(), exec: None };
        let (process, request, step, purpose) = match request {
            Request::Start { container } => {
                let (step, process) = (format!("start container {container}"), init(&container));
                (process.clone(), agent::Request::Start { container }, step, Purpose::Start(caller, process))
            }
            Request::Signal { process, signal, all } => {
                let step = format!("send signal {signal} to container {}", process.container);
                (process.clone(), agent::Request::Signal { process, signal, all }, step, Purpose::Other(caller))
            }
            Request::Resize { process, size } => {
                let step = format!("resize the terminal of container {}", process.container);
                (process.clone(), agent::Request::Resize { process, size }, step, Purpose::Other(caller))
            }
            Request::Delete { container } => {
                let (step, process) = (format!("delete container {container}"), init(&container));
                let purpose = Purpose::Delete(caller, container.clone());
                (process, agent::Request::Delete { container }, step, purpose)
            }
            _ => return None,
        };
        let is_delete = matches!(purpose, Purpose::Delete(..));
        match self.processes.check_alive(&process) {
            Ok(()) => {}
            Err(Absent::Ended) if is_delete => {}
            Err(absent) => return Some(Err(absent_failure(&process, absent))),
        }
        self.ask(request, step, purpose);
        None
    }

    /// Asks the agent. A request that cannot even be sent has failed.
    pub(super) fn ask(&mut self, request: agent::Request, step: String, purpose: Purpose) {
        if let Some(failure) = self.lost.clone() {
            self.fail(purpose, failure);
        } else if let Err((purpose, failure)) = self.guest.call(request, step, purpose) {
            self.fail(purpose, failure);
        }
    }
}

fn absent_failure(process: &ProcessId, absent: Absent) -> Failure {
    let name = match &process.exec {
        Some(exec) => format!("find process {exec} of container {}", process.container),
        None => format!("find container {}", process.container),
    };
    match absent {
        Absent::Unknown => failure(FailureKind::NotFound, name, "there is none of that name in this sandbox"),
        Absent::Ended => failure(FailureKind::WrongState, name, "it is not running"),
    }
}

fn share_failure(step: &str, error: &crate::fs::ShareError) -> Failure {
    failure(FailureKind::System, step, crate::chain(error))
}
