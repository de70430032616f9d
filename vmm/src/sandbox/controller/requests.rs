//! Requests of clients: dispatch, and those that need no new process.

use std::os::fd::OwnedFd;

use agent::{ContainerRequest, Failure, FailureKind, ProcessId};
use event_manager::EventSet;

use super::Controller;
use crate::control::{Reply, Request, ShareOptions};
use crate::sandbox::clients::Caller;
use crate::sandbox::containers::{Absent, first_process};
use crate::sandbox::failures::{absent_failure, failure, share_failure};
use crate::timeline;

/// The result of a request, or `None` if it is answered later.
pub(super) type Outcome = Option<Result<Reply, Failure>>;

impl Controller {
    /// Accepts pending connections to the control socket.
    pub(super) fn accept_clients(&mut self) {
        if let Err(error) = self.clients.accept(&self.listener) {
            tracing::warn!(%error, "cannot accept a control connection");
        }
    }

    /// Handles all requests that a client has sent, and sends its buffered answers.
    pub(super) fn serve_client(&mut self, client: u32, events: EventSet) {
        if events.contains(EventSet::OUT) {
            self.clients.flush(client);
        }
        while let Some((caller, request)) = self.clients.next_request(client) {
            if let Some(result) = self.handle(caller, request) {
                self.clients.answer(caller, result);
            }
        }
    }

    fn handle(&mut self, caller: Caller, request: Request) -> Outcome {
        match request {
            Request::AddShare { name, options } => {
                let root = self.clients.take_fds(caller, 1)?.pop()?;
                Some(self.add_share(caller, &name, root, options))
            }
            Request::Create(new) => {
                let fds = self.clients.take_fds(caller, new.counts().iter().sum())?;
                self.create_container(caller, *new, fds)
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
            Request::AwaitOutOfMemory { container, known } => self.await_oom_kill(caller, container, known),
            Request::SetMemory { mib } => self.set_memory(caller, mib),
            Request::SetVcpus { count } => self.set_vcpus(caller, count),
            Request::Timeline => Some(Ok(Reply::Timeline(timeline::stages()))),
            Request::RemoveShare { name } => {
                let removed = self.shares.remove(&name);
                Some(removed.map(|()| Reply::Done).map_err(|error| share_failure("take the share away", &error)))
            }
            Request::Configure(_) | Request::BecomeProxy { .. } => {
                let cause = "only the first request of the inherited connection does that";
                Some(Err(failure(FailureKind::WrongState, "configure the sandbox", cause)))
            }
            Request::Container(request @ ContainerRequest::Start { .. }) => self.start_container(caller, request),
            Request::Container(request) => self.relay(caller, request),
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
            self.register_container(container, caller.client);
        }
        added.map(|()| Reply::Done).map_err(|error| share_failure("share with the guest", &error))
    }

    fn wait(&mut self, caller: Caller, process: &ProcessId) -> Outcome {
        match self.processes.wait(process, caller) {
            Ok(Some(status)) => Some(Ok(Reply::Exited(status))),
            Ok(None) => self.closed.clone().map(Err),
            Err(absent) => Some(Err(absent_failure(process, absent))),
        }
    }

    fn await_oom_kill(&mut self, caller: Caller, container: String, known: Option<u64>) -> Outcome {
        if let Err(failure) = self.status(&container) {
            return Some(Err(failure));
        }
        match self.oom_kills.wait(container, known, caller) {
            Some(count) => Some(Ok(Reply::OutOfMemory(count))),
            // Without a guest no OOM kill follows.
            None => self.closed.clone().map(Err),
        }
    }

    fn status(&self, container: &str) -> Result<Reply, Failure> {
        let process = first_process(container);
        let status = self.processes.status(&process).map(Reply::Status);
        status.ok_or_else(|| absent_failure(&process, Absent::Unknown))
    }
}
