//! Requests of clients that the agent carries out unchanged.

use agent::ProcessId;

use super::requests::Outcome;
use super::{Controller, Purpose};
use crate::control::Request;
use crate::sandbox::clients::Caller;
use crate::sandbox::containers::{Absent, first_process};
use crate::sandbox::failures::absent_failure;

/// A request to the agent that corresponds to a client's request.
struct Relayed {
    /// The process that the request concerns.
    process: ProcessId,
    request: agent::Request,
    /// Describes the request in a failure.
    step: String,
    purpose: Purpose,
}

impl Controller {
    /// Sends a client's request to the agent if its process is alive. An ended container can be deleted.
    pub(super) fn relay(&mut self, caller: Caller, request: Request) -> Outcome {
        let Relayed { process, request, step, purpose } = translate(caller, request)?;
        let is_delete = matches!(purpose, Purpose::Delete(..));
        match self.processes.check_alive(&process) {
            Ok(()) => {}
            Err(Absent::Ended) if is_delete => {}
            Err(absent) => return Some(Err(absent_failure(&process, absent))),
        }
        self.call_agent(request, step, purpose);
        None
    }
}

/// The agent's form of a client's request; `None` for requests that are not relayed.
fn translate(caller: Caller, request: Request) -> Option<Relayed> {
    let other = Purpose::Other(caller);
    let (process, request, step, purpose) = match request {
        Request::Start { container } => {
            let (step, init) = (format!("start container {container}"), first_process(&container));
            (init.clone(), agent::Request::Start { container }, step, Purpose::Start(caller, init))
        }
        Request::ChangeInterfaces { container, changes } => {
            let step = format!("change network interfaces of container {container}");
            (first_process(&container), agent::Request::ChangeInterfaces { container, changes }, step, other)
        }
        Request::RemoveInterface { container, name } => {
            let step = format!("remove network interface {name} from container {container}");
            (first_process(&container), agent::Request::RemoveInterface { container, name }, step, other)
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
            let init = first_process(&container);
            (init.clone(), agent::Request::Freeze { container, frozen }, step, Purpose::Freeze(caller, init, frozen))
        }
        Request::Processes { container } => {
            let (step, init) = (format!("list the processes of container {container}"), first_process(&container));
            (init, agent::Request::Processes { container }, step, other)
        }
        Request::Statistics { container } => {
            let (step, init) = (format!("read the resource usage of container {container}"), first_process(&container));
            (init, agent::Request::Statistics { container }, step, other)
        }
        Request::Update { container, resources } => {
            let (step, init) = (format!("set limits of container {container}"), first_process(&container));
            (init, agent::Request::Update { container, resources }, step, other)
        }
        Request::Delete { container } => {
            let (step, init) = (format!("delete container {container}"), first_process(&container));
            let purpose = Purpose::Delete(caller, container.clone());
            (init, agent::Request::Delete { container }, step, purpose)
        }
        _ => return None,
    };
    Some(Relayed { process, request, step, purpose })
}
