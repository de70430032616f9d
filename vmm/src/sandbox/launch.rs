//! From the configuration to a running sandbox, and to its exit status.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;

use agent::{Failure, FailureKind};
use event_manager::SubscriberOps;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

use super::stand_in::stand_in;
use super::{Parts, Sandbox, Signals, listen};
use crate::config::SandboxConfig;
use crate::control::{Answer, Call, ClientError, Connection, ConnectionError, Reply, Request};
use crate::event_loop::{EventLoop, LoopHandle};
use crate::fs::SharesHandle;
use crate::machine::assembly::{AssemblyError, assemble};
use crate::machine::resources::{Resources, ResourcesError};
use crate::machine::{MachineError, RunningMachine};
use crate::timeline;
use crate::vsock::Ports;

/// Why there is no sandbox.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// The client that started the VMM did not configure it.
    #[error("cannot receive the sandbox's configuration")]
    Connection(#[from] ConnectionError),
    /// The first request was another.
    #[error("the first request does not configure the sandbox")]
    NotConfigured,
    /// The configuration is wrong, or names what cannot be used.
    #[error(transparent)]
    Resources(#[from] ResourcesError),
    /// The machine cannot be made.
    #[error(transparent)]
    Assembly(#[from] AssemblyError),
    /// Its vCPUs cannot be started.
    #[error("cannot start the machine")]
    Machine(#[from] MachineError),
    /// Nobody could connect.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// The control socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The sandbox of the container that this process stands in for cannot be talked to.
    #[error("cannot talk to the container's sandbox")]
    StandIn(#[from] ClientError),
    /// The event loop cannot run.
    #[error("cannot run the event loop")]
    EventLoop(#[from] event_manager::Error),
    /// A system call failed.
    #[error("cannot {0}")]
    System(&'static str, #[source] io::Error),
}

/// A sandbox whose vCPUs run.
struct Running {
    event_loop: EventLoop,
    _machine: RunningMachine,
    outcome: Receiver<u8>,
}

/// Runs the sandbox that the client at the other end of `control` configures, and returns the VMM's exit status. Or stands in for
/// a container of another sandbox, and returns that container's.
///
/// The machine still runs when this returns: it ends with the process, which is faster than to take it apart.
///
/// # Errors
/// There is no sandbox; the client was told.
pub fn run(control: UnixStream) -> Result<u8, LaunchError> {
    let signals = Signals::block().map_err(|error| LaunchError::System("block signals", error))?;
    let stream = control.try_clone().map_err(|error| LaunchError::System("duplicate a descriptor", error))?;
    let mut client = Connection::new(stream);
    let Call { id, request } = first_call(&mut client)?;
    timeline::mark("configuration received");
    let result = match request {
        Request::Configure(config) => launch(&config, client, signals),
        Request::Join { container } => return stand_in(client, id, &container, signals),
        _ => return Err(LaunchError::NotConfigured),
    };
    let told = match &result {
        Ok(_) => Ok(Reply::Done),
        Err(error) => Err(Failure {
            kind: FailureKind::System,
            step: "start the virtual machine".to_owned(),
            cause: crate::chain(error),
        }),
    };
    Connection::new(control).send(&Answer { id, result: told })?;
    result?.serve()
}

fn first_call(client: &mut Connection) -> Result<Call, LaunchError> {
    loop {
        match client.next_call()? {
            Some(call) => return Ok(call),
            // The client may take its time: it is our parent, and closes the connection when it ends.
            None => match poll(&mut [PollFd::new(client.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(LaunchError::System("wait for the configuration", error.into())),
            },
        }
    }
}

fn launch(config: &SandboxConfig, client: Connection, signals: Signals) -> Result<Running, LaunchError> {
    let mut event_loop = EventLoop::new()?;
    let shares = SharesHandle::new();
    let ports = Ports::new().map_err(|error| LaunchError::System("make an event descriptor", error))?;
    let resources = Resources::open(config)?;
    let assembled = assemble(resources, &LoopHandle::new(&event_loop), shares.clone(), ports.clone())?;
    let path = &config.control_socket;
    let listener = listen(path).map_err(|source| LaunchError::Listen { path: path.clone(), source })?;
    let main_container = config.main_container.clone();
    let victim = config.has_cgroup.then(|| "/proc/self/exe".into());
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
        main_container,
        victim,
        follow_interfaces: config.follow_interfaces.clone(),
    };
    let (sandbox, outcome) =
        Sandbox::new(parts).map_err(|error| LaunchError::System("make the sandbox's descriptors", error))?;
    event_loop.add_subscriber(Box::new(sandbox));
    Ok(Running { _machine: assembled.machine.start()?, event_loop, outcome })
}

impl Running {
    fn serve(mut self) -> Result<u8, LaunchError> {
        loop {
            self.event_loop.run()?;
            if let Ok(status) = self.outcome.try_recv() {
                std::mem::forget(self);
                return Ok(status);
            }
        }
    }
}
