//! What clients ask for.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use agent::{CreateContainer, Exec, Failure, FailureKind, ProcessId};
use event_manager::EventSet;
use oci_spec::runtime::Process;

use super::clients::Caller;
use super::processes::{Absent, Streams};
use super::{Purpose, Sandbox, failure, init_of};
use crate::control::{NewContainer, Reply, Request, ShareOptions, Status, StdioFds};
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
            Request::AddShare { name, options } => {
                let root = self.clients.take_fds(caller, 1)?.pop()?;
                Some(self.add_share(caller, &name, root, options))
            }
            Request::Create(new) => {
                let fds = self.clients.take_fds(caller, new.counts().iter().sum())?;
                self.create(caller, *new, fds)
            }
            Request::AddInterface { container, interface, name_server } => {
                let tap = self.clients.take_fds(caller, 1)?.pop()?;
                self.add_interface(caller, container, (*interface, tap), name_server)
            }
            Request::Exec { process, spec, stdio, cgroup } => {
                let fds = self.clients.take_fds(caller, stdio.count())?;
                self.exec(caller, process, (*spec, cgroup), (stdio, fds))
            }
            Request::Wait { process } => self.wait(caller, &process),
            Request::Status { container } => Some(self.status(&container)),
            Request::AwaitOutOfMemory { container, known } => self.await_out_of_memory(caller, container, known),
            Request::SetMemory { mib } => self.set_memory(caller, mib),
            Request::SetVcpus { count } => self.set_vcpus(caller, count),
            Request::Timeline => Some(Ok(Reply::Timeline(timeline::stages()))),
            Request::RemoveShare { name } => {
                let removed = self.shares.remove(&name);
                Some(removed.map(|()| Reply::Done).map_err(|error| share_failure("take the share away", &error)))
            }
            Request::Configure(_) | Request::Join { .. } => {
                let cause = "only the first request of the inherited connection does that";
                Some(Err(failure(FailureKind::WrongState, "configure the sandbox", cause)))
            }
            request => {
                if matches!(request, Request::Start { .. }) {
                    self.follow_interfaces();
                }
                self.relay(caller, request)
            }
        }
    }

    fn add_share(
        &mut self,
        caller: Caller,
        name: &str,
        root: OwnedFd,
        options: ShareOptions,
    ) -> Result<Reply, Failure> {
        let added = self.shares.add(name, root, options);
        if let (Ok(()), Some((container, _))) = (&added, name.split_once('/')) {
            self.move_in(container, caller.client);
        }
        added.map(|()| Reply::Done).map_err(|error| share_failure("share with the guest", &error))
    }

    fn create(&mut self, caller: Caller, new: NewContainer, mut fds: Vec<OwnedFd>) -> Option<Result<Reply, Failure>> {
        let step = format!("create container {}", new.container);
        let process = init_of(&new.container);
        let [streams, interfaces, _] = new.counts();
        let sockets = fds.split_off(streams + interfaces);
        let taps = fds.split_off(streams);
        let attached = self.attach_all(new.interfaces, taps);
        let opened = attached.and_then(|interfaces| {
            let stdio = self.open_streams(&process, &step, new.stdio, fds)?;
            Ok((interfaces, stdio))
        });
        let (interfaces, stdio) = match opened {
            Ok(opened) => opened,
            Err(failure) => return Some(Err(failure)),
        };
        timeline::mark("container asked for");
        let special_files = self.attach_files(&process, new.special_files, sockets);
        let name_server = new.name_server.then(|| self.attach_name_server(&process));
        let NewContainer { container, spec, bundle, seccomp, .. } = new;
        let create =
            CreateContainer { container, spec, bundle, stdio, seccomp, interfaces, special_files, name_server };
        self.ask(agent::Request::Create(Box::new(create)), step, Purpose::Make(caller, process));
        None
    }

    fn exec(
        &mut self,
        caller: Caller,
        process: ProcessId,
        (spec, cgroup): (Process, Option<PathBuf>),
        (stdio, fds): (StdioFds, Vec<OwnedFd>),
    ) -> Option<Result<Reply, Failure>> {
        let step = format!("execute a process in container {}", process.container);
        let container = init_of(&process.container);
        let checked = match (self.processes.check_alive(&container), &process.exec) {
            (Err(absent), _) => Err(absent_failure(&container, absent)),
            (_, None) => Err(failure(FailureKind::InvalidSpec, step.as_str(), "the process has no id")),
            _ => self.open_streams(&process, &step, stdio, fds),
        };
        match checked {
            Ok(stdio) => {
                let request = agent::Request::Exec(Box::new(Exec { process: process.clone(), spec, stdio, cgroup }));
                let purpose = Purpose::Make(caller, process);
                match self.processes.status(&container) {
                    // A process that is born stopped does not get anywhere before the others go on.
                    Some(Status::Paused) => self.ask_patiently(request, step, purpose),
                    _ => self.ask(request, step, purpose),
                }
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

    fn await_out_of_memory(
        &mut self,
        caller: Caller,
        container: String,
        known: Option<u64>,
    ) -> Option<Result<Reply, Failure>> {
        if let Err(failure) = self.status(&container) {
            return Some(Err(failure));
        }
        match self.out_of_memory.wait(container, known, caller) {
            Some(count) => Some(Ok(Reply::OutOfMemory(count))),
            // It stays among those who wait only as long as there is a guest to hear of it from.
            None => self.lost.clone().map(Err),
        }
    }

    fn status(&self, container: &str) -> Result<Reply, Failure> {
        let process = init_of(container);
        let status = self.processes.status(&process).map(Reply::Status);
        status.ok_or_else(|| absent_failure(&process, Absent::Unknown))
    }

    /// Requests that the agent carries out as they are.
    fn relay(&mut self, caller: Caller, request: Request) -> Option<Result<Reply, Failure>> {
        let (process, request, step, purpose) = translate(caller, request)?;
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

    /// As [`Sandbox::ask`], where the answer may take for ever.
    pub(super) fn ask_patiently(&mut self, request: agent::Request, step: String, purpose: Purpose) {
        if let Some(failure) = self.lost.clone() {
            self.fail(purpose, failure);
        } else if let Err((purpose, failure)) = self.guest.call_patiently(request, step, purpose) {
            self.fail(purpose, failure);
        }
    }
}

/// What the agent is asked for: whom it concerns, the request, what it is called, and what is to be done with the answer.
fn translate(caller: Caller, request: Request) -> Option<(ProcessId, agent::Request, String, Purpose)> {
    let other = Purpose::Other(caller);
    Some(match request {
        Request::Start { container } => {
            let (step, init) = (format!("start container {container}"), init_of(&container));
            (init.clone(), agent::Request::Start { container }, step, Purpose::Start(caller, init))
        }
        Request::ChangeInterfaces { container, changes } => {
            let step = format!("change network interfaces of container {container}");
            (init_of(&container), agent::Request::ChangeInterfaces { container, changes }, step, other)
        }
        Request::RemoveInterface { container, name } => {
            let step = format!("take network interface {name} away from container {container}");
            (init_of(&container), agent::Request::RemoveInterface { container, name }, step, other)
        }
        Request::Signal { process, signal, all } => {
            let step = format!("send signal {signal} to container {}", process.container);
            (process.clone(), agent::Request::Signal { process, signal, all }, step, other)
        }
        Request::Resize { process, size } => {
            let step = format!("resize the terminal of container {}", process.container);
            (process.clone(), agent::Request::Resize { process, size }, step, other)
        }
        Request::Freeze { container, frozen } => {
            let step = format!("{} container {container}", if frozen { "freeze" } else { "thaw" });
            let init = init_of(&container);
            (init.clone(), agent::Request::Freeze { container, frozen }, step, Purpose::Freeze(caller, init, frozen))
        }
        Request::Processes { container } => {
            let (step, init) = (format!("list the processes of container {container}"), init_of(&container));
            (init, agent::Request::Processes { container }, step, other)
        }
        Request::Statistics { container } => {
            let (step, init) = (format!("read what container {container} uses"), init_of(&container));
            (init, agent::Request::Statistics { container }, step, other)
        }
        Request::Update { container, resources } => {
            let (step, init) = (format!("set limits of container {container}"), init_of(&container));
            (init, agent::Request::Update { container, resources }, step, other)
        }
        Request::Delete { container } => {
            let (step, init) = (format!("delete container {container}"), init_of(&container));
            let purpose = Purpose::Delete(caller, container.clone());
            (init, agent::Request::Delete { container }, step, purpose)
        }
        _ => return None,
    })
}

pub(super) fn absent_failure(process: &ProcessId, absent: Absent) -> Failure {
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
