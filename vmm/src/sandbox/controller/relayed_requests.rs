//! Requests of clients that the agent carries out unchanged.

use agent::ContainerRequest;

use super::requests::Outcome;
use super::{Controller, Purpose};
use crate::sandbox::clients::Caller;
use crate::sandbox::containers::Absent;
use crate::sandbox::failures::absent_failure;

impl Controller {
    /// Passes a client's request on to the agent if its process is alive. An ended container can be deleted.
    pub(super) fn relay(&mut self, caller: Caller, request: ContainerRequest) -> Outcome {
        let process = request.process();
        match self.processes.check_alive(&process) {
            Ok(()) => {}
            Err(Absent::Ended) if matches!(request, ContainerRequest::Delete { .. }) => {}
            Err(absent) => return Some(Err(absent_failure(&process, absent))),
        }
        let step = request.to_string();
        let purpose = match &request {
            ContainerRequest::Start { .. } => Purpose::Start(caller, process),
            ContainerRequest::Freeze { frozen, .. } => Purpose::Freeze(caller, process, *frozen),
            ContainerRequest::Delete { container } => Purpose::Delete(caller, container.clone()),
            _ => Purpose::Other(caller),
        };
        self.call_agent(agent::Request::Container(request), step, purpose);
        None
    }
}
