//! Interfaces that clients give containers: the host's end goes to a slot, the guest's is the agent's to set up.

use std::os::fd::OwnedFd;

use agent::{AttachedInterface, Failure, FailureKind, Interface};

use super::clients::Caller;
use super::requests::absent_failure;
use super::{Purpose, Sandbox, failure, init_of};
use crate::control::Reply;
use crate::net::Tap;

impl Sandbox {
    /// Attaches each interface's tap to a slot.
    pub(super) fn attach_all(
        &mut self,
        interfaces: Vec<Interface>,
        taps: Vec<OwnedFd>,
    ) -> Result<Vec<AttachedInterface>, Failure> {
        interfaces.into_iter().zip(taps).map(|(interface, tap)| self.attach(interface, tap)).collect()
    }

    fn attach(&mut self, interface: Interface, tap: OwnedFd) -> Result<AttachedInterface, Failure> {
        let failed =
            |cause| failure(FailureKind::System, format!("attach network interface {}", interface.name), cause);
        let tap = Tap::new(tap).map_err(|error| failed(crate::chain(&error)))?;
        let slot = self.slots.attach(tap).map_err(|error| failed(crate::chain(&error)))?;
        Ok(AttachedInterface { slot, interface })
    }

    pub(super) fn add_interface(
        &mut self,
        caller: Caller,
        container: String,
        (interface, tap): (Interface, OwnedFd),
        name_server: bool,
    ) -> Option<Result<Reply, Failure>> {
        let process = init_of(&container);
        if let Err(absent) = self.processes.check_alive(&process) {
            return Some(Err(absent_failure(&process, absent)));
        }
        let step = format!("set up network interface {} in container {container}", interface.name);
        match self.attach(interface, tap) {
            Ok(interface) => {
                let name_server = name_server.then(|| self.attach_name_server(&process));
                let interface = Box::new(interface);
                let request = agent::Request::AddInterface { container, interface, name_server };
                self.ask(request, step, Purpose::Other(caller));
                None
            }
            Err(failure) => Some(Err(failure)),
        }
    }
}
