//! Resources of the host that containers use: network interfaces through taps, sockets through vsock ports.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use agent::{AttachedFile, AttachedInterface, Failure, FailureKind, Interface, ProcessId, SpecialFile, SpecialKind};

use super::requests::Outcome;
use super::{Controller, Purpose};
use crate::net::Tap;
use crate::sandbox::clients::Caller;
use crate::sandbox::containers::first_process;
use crate::sandbox::failures::{absent_failure, failure};
use crate::sandbox::host_sockets::HostSocket;

impl Controller {
    /// Attaches each interface's tap to a free network device.
    pub(super) fn attach_interfaces(
        &mut self,
        interfaces: Vec<Interface>,
        taps: Vec<OwnedFd>,
    ) -> Result<Vec<AttachedInterface>, Failure> {
        interfaces.into_iter().zip(taps).map(|(interface, tap)| self.attach_interface(interface, tap)).collect()
    }

    fn attach_interface(&mut self, interface: Interface, tap: OwnedFd) -> Result<AttachedInterface, Failure> {
        let failed =
            |cause| failure(FailureKind::System, format!("attach network interface {}", interface.name), cause);
        let tap = Tap::new(tap).map_err(|error| failed(crate::chain(&error)))?;
        let slot = self.slots.attach(tap).map_err(|error| failed(crate::chain(&error)))?;
        Ok(AttachedInterface { slot, interface })
    }

    /// Adds an interface to a container, and the name server if `name_server` is set.
    pub(super) fn add_interface(
        &mut self,
        caller: Caller,
        container: String,
        (interface, tap): (Interface, OwnedFd),
        name_server: bool,
    ) -> Outcome {
        let process = first_process(&container);
        if let Err(absent) = self.processes.check_alive(&process) {
            return Some(Err(absent_failure(&process, absent)));
        }
        let step = format!("set up network interface {} in container {container}", interface.name);
        match self.attach_interface(interface, tap) {
            Ok(interface) => {
                let name_server = name_server.then(|| self.attach_name_server(&process));
                let interface = Box::new(interface);
                let request = agent::Request::AddInterface { container, interface, name_server };
                self.call_agent(request, step, Purpose::Other(caller));
                None
            }
            Err(failure) => Some(Err(failure)),
        }
    }

    /// Opens a port for each socket among `files`. `sockets` are their `O_PATH` descriptors. The ports close with the
    /// container whose first process is `process`.
    pub(super) fn attach_special_files(
        &mut self,
        process: &ProcessId,
        files: Vec<SpecialFile>,
        sockets: Vec<OwnedFd>,
    ) -> Vec<AttachedFile> {
        let mut sockets = sockets.into_iter();
        let attach = |file: SpecialFile| {
            let socket = if file.kind == SpecialKind::Socket { sockets.next() } else { None };
            let port = socket.map(|socket| self.serve_socket(HostSocket::Unix(Arc::new(socket))));
            AttachedFile { file, port }
        };
        let attached: Vec<_> = files.into_iter().map(attach).collect();
        self.processes.add_ports(process, attached.iter().filter_map(|file| file.port));
        attached
    }

    /// Opens a port to the name server of the VMM's network namespace. It closes with the container whose first process is
    /// `process`.
    pub(super) fn attach_name_server(&mut self, process: &ProcessId) -> u32 {
        let port = self.serve_socket(HostSocket::NameServer);
        self.processes.add_ports(process, [port].into_iter());
        port
    }

    /// Opens a port whose connections go to `socket`.
    fn serve_socket(&self, socket: HostSocket) -> u32 {
        let connector = self.connector.clone();
        self.ports.serve(Box::new(move || connector.connect(socket.clone())))
    }
}
