//! The life of the VMM's process: from the first request to the exit status.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::Receiver;

use agent::{Failure, FailureKind, Seed};
use event_manager::SubscriberOps;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::Backlog;
use oci_spec::runtime::ExecCPUAffinity;
use thiserror::Error;

use super::container_proxy::{self, ProxyError};
use super::controller::{Controller, Parts, TemplateRole};
use super::host_sockets::Connector;
use super::interface_monitor::open_changes;
use super::machine_setup::{MachineOrigin, MachineSetup, SetUpMachine};
use super::signals::Signals;
use crate::config::{SandboxConfig, SandboxFiles, TemplateUse};
use crate::control::{Answer, Call, Connection, ConnectionError, Reply, Request};
use crate::event_loop::{EventLoop, LoopHandle};
use crate::fs::{FsError, ProcFds, SharesHandle};
use crate::jail::seccomp::{self, ThreadClass};
use crate::jail::{self, JailError};
use crate::machine::assembly::AssemblyError;
use crate::machine::resources::{MachineFiles, Resources, ResourcesError};
use crate::machine::{MachineError, RunningMachine};
use crate::timeline;
use crate::virtio::rng::random;
use crate::vsock::Ports;

/// Why the sandbox or the proxy does not run.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// The client that started the VMM closed the connection or broke the protocol.
    #[error("cannot receive the sandbox's configuration")]
    Connection(#[from] ConnectionError),
    /// The first request is neither [`Request::Configure`] nor [`Request::BecomeProxy`].
    #[error("the first request does not configure the sandbox")]
    NotConfigured,
    /// The configuration is invalid, or one of its files cannot be used.
    #[error(transparent)]
    Resources(#[from] ResourcesError),
    /// The machine cannot be built.
    #[error(transparent)]
    Assembly(#[from] AssemblyError),
    /// The vCPUs cannot be started.
    #[error("cannot start the machine")]
    Machine(#[from] MachineError),
    /// The process cannot confine itself.
    #[error("the VMM cannot confine itself")]
    Jail(#[from] JailError),
    /// The file server cannot be made.
    #[error("cannot make the file server")]
    FileServer(#[from] FsError),
    /// This process cannot be the proxy of a container in another sandbox.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The event loop cannot run.
    #[error("cannot run the event loop")]
    EventLoop(#[from] event_manager::Error),
    /// A system call failed.
    #[error("cannot {0}")]
    System(&'static str, #[source] io::Error),
}

/// A sandbox whose vCPUs run.
struct RunningSandbox {
    event_loop: EventLoop,
    /// A machine that becomes a template belongs to the thread that saves it.
    _machine: Option<RunningMachine>,
    exit_status: Receiver<u8>,
    origin: MachineOrigin,
}

/// Runs the sandbox that the client at the other end of `control` configures, and returns the VMM's exit status. If the first
/// request is [`Request::BecomeProxy`], runs the proxy of a container in another sandbox instead, and returns that container's
/// exit status.
///
/// The machine still runs when this returns. It ends with the process, which is faster than destroying it.
///
/// # Errors
/// The sandbox cannot be started. The client has received the cause.
pub fn run(control: UnixStream) -> Result<u8, LaunchError> {
    let signals = Signals::block().map_err(|error| LaunchError::System("block signals", error))?;
    let stream = control.try_clone().map_err(|error| LaunchError::System("duplicate a descriptor", error))?;
    let mut client = Connection::new(stream);
    let Call { id, request } = receive_first_call(&mut client)?;
    timeline::mark("configuration received");
    let result = match request {
        Request::Configure(config) => launch(&config, client, signals),
        Request::BecomeProxy { container, jail } => {
            return Ok(container_proxy::run(client, (id, &container), &jail, signals)?);
        }
        _ => return Err(LaunchError::NotConfigured),
    };
    let answer = match &result {
        Ok(RunningSandbox { origin: MachineOrigin::Boot { refusal: Some(cause) }, .. }) => {
            Ok(Reply::TemplateRefused { cause: cause.clone() })
        }
        Ok(_) => Ok(Reply::Done),
        Err(error) => Err(Failure {
            kind: FailureKind::System,
            step: "start the virtual machine".to_owned(),
            cause: crate::chain(error),
        }),
    };
    Connection::new(control).send(&Answer { id, result: answer })?;
    result?.run_event_loop()
}

/// Waits for the first request. There is no timeout: the client is the parent process, and its end closes the connection.
fn receive_first_call(client: &mut Connection) -> Result<Call, LaunchError> {
    loop {
        match client.next_call()? {
            Some(call) => return Ok(call),
            None => match poll(&mut [PollFd::new(client.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(LaunchError::System("wait for the configuration", error.into())),
            },
        }
    }
}

fn launch(config: &SandboxConfig, mut client: Connection, signals: Signals) -> Result<RunningSandbox, LaunchError> {
    let files = client.take_fds(config.descriptors()).and_then(|files| SandboxFiles::of(files, config));
    let files = files.ok_or(LaunchError::NotConfigured)?;
    let SandboxFiles { kvm, control_socket, helper, node_maker, kernel, initramfs, console_log, template } = files;
    let listener =
        listen(control_socket).map_err(|error| LaunchError::System("listen on the control socket", error))?;
    let (template, new_template) = match config.template {
        TemplateUse::Make => (None, template),
        TemplateUse::None | TemplateUse::Start => (template, None),
    };
    let resources = Resources::of(config, MachineFiles { kvm, kernel, initramfs, console_log, new_template })?;
    let interface_changes = (config.network_slots > 0).then(open_changes).transpose();
    let interface_changes =
        interface_changes.map_err(|error| LaunchError::System("monitor network interfaces", error))?;
    let proc_fds = ProcFds::open()?;
    prepare_parser();
    jail::enter(&config.jail)?;
    timeline::mark("VMM confined");
    let mut event_loop = EventLoop::new()?;
    let shares = SharesHandle::new();
    let ports = Ports::new().map_err(|error| LaunchError::System("create the table of vsock ports", error))?;
    let connector = Connector::start(proc_fds.clone())
        .map_err(|error| LaunchError::System("start the thread that connects to sockets", error))?;
    let setup = MachineSetup {
        resources,
        event_loop: LoopHandle::new(&event_loop),
        shares: shares.clone(),
        proc_fds,
        node_maker,
        ports: ports.clone(),
    };
    let SetUpMachine { assembled, saver, origin } = setup.run(config.template, template)?;
    let template = match (&saver, &origin) {
        (Some(saver), _) => TemplateRole::Make(saver.clone()),
        (None, MachineOrigin::Template) => TemplateRole::Started { memory_mib: config.memory_mib, seed: new_seed()? },
        (None, MachineOrigin::Boot { .. }) => TemplateRole::None,
    };
    jail::drop_capabilities()?;
    let parts = Parts {
        client,
        listener,
        signals,
        machine: assembled.exit,
        ports,
        shares,
        slots: assembled.slots,
        resizer: assembled.resizer,
        vcpus: assembled.vcpus,
        main_container: config.main_container.clone(),
        has_cgroup: config.has_cgroup,
        helper,
        connector,
        template,
        interface_changes,
    };
    let (controller, exit_status) =
        Controller::new(parts).map_err(|error| LaunchError::System("create the sandbox's descriptors", error))?;
    event_loop.add_subscriber(Box::new(controller));
    seccomp::confine(ThreadClass::EventLoop)
        .map_err(|error| LaunchError::System("limit the system calls of the event loop", error))?;
    let machine = assembled.machine.start()?;
    let machine = match saver {
        None => Some(machine),
        Some(saver) => {
            saver.give(machine);
            None
        }
    };
    Ok(RunningSandbox { _machine: machine, event_loop, exit_status, origin })
}

/// Random bytes for a guest whose own state other guests have as well.
fn new_seed() -> Result<Seed, LaunchError> {
    let mut bytes = [0; Seed::LENGTH];
    random(&mut bytes).map_err(|error| LaunchError::System("get random bytes", error))?;
    Ok(Seed::new(bytes))
}

/// Parses a specification's only field that is checked by a regular expression. Before its first use, the library counts the CPUs in a
/// file of procfs, which a confined thread may not open.
fn prepare_parser() {
    let parsed = serde_json::from_str::<ExecCPUAffinity>(r#"{"initial": "0"}"#);
    debug_assert!(parsed.is_ok());
}

/// Listens on the bound control socket.
fn listen(socket: OwnedFd) -> io::Result<UnixListener> {
    nix::sys::socket::listen(&socket, Backlog::MAXALLOWABLE)?;
    let listener = UnixListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl RunningSandbox {
    /// Runs the event loop until the controller sends the exit status.
    fn run_event_loop(mut self) -> Result<u8, LaunchError> {
        loop {
            self.event_loop.run()?;
            if let Ok(status) = self.exit_status.try_recv() {
                std::mem::forget(self);
                return Ok(status);
            }
        }
    }
}
