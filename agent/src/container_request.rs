//! Requests about a container that clients send and the VMM passes on unchanged.

use std::fmt;

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use crate::network::InterfaceChange;
use crate::process::{ProcessId, TerminalSize};

/// A request of both protocols: of a client to the VMM, and of the VMM to the agent.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerRequest {
    /// Executes the program of a created container.
    Start {
        /// The container's id.
        container: String,
    },
    /// Sends a signal.
    Signal {
        /// The receiver.
        process: ProcessId,
        /// Its number in the guest's kernel.
        signal: i32,
        /// Whether every process of the container receives it.
        all: bool,
    },
    /// Sets the size of a process's terminal.
    Resize {
        /// The process.
        process: ProcessId,
        /// The size.
        size: TerminalSize,
    },
    /// Freezes or thaws every process of a container. Answered when all processes have changed.
    Freeze {
        /// The container's id.
        container: String,
        /// Whether to freeze.
        frozen: bool,
    },
    /// Lists the processes of a container.
    Processes {
        /// The container's id.
        container: String,
    },
    /// Reads the resource usage of a container.
    Statistics {
        /// The container's id.
        container: String,
    },
    /// Changes limits of a container. Absent limits and the device rules stay as they are.
    Update {
        /// The container's id.
        container: String,
        /// The limits.
        resources: Box<LinuxResources>,
    },
    /// Changes network interfaces of a container. Everything that interfaces lose is removed before anything is added.
    ChangeInterfaces {
        /// The container's id.
        container: String,
        /// The changes, at most one for each interface.
        changes: Vec<InterfaceChange>,
    },
    /// Detaches a network interface from a container.
    RemoveInterface {
        /// The container's id.
        container: String,
        /// The interface's name.
        name: String,
    },
    /// Deletes the record of a stopped container and what remains of it.
    Delete {
        /// The container's id.
        container: String,
    },
}

impl ContainerRequest {
    /// The process that the request concerns: for all but two requests, the container's first one.
    #[must_use]
    pub fn process(&self) -> ProcessId {
        match self {
            Self::Signal { process, .. } | Self::Resize { process, .. } => process.clone(),
            Self::Start { container }
            | Self::Freeze { container, .. }
            | Self::Processes { container }
            | Self::Statistics { container }
            | Self::Update { container, .. }
            | Self::ChangeInterfaces { container, .. }
            | Self::RemoveInterface { container, .. }
            | Self::Delete { container } => ProcessId { container: container.clone(), exec: None },
        }
    }
}

/// The step that the request is, for failures.
impl fmt::Display for ContainerRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let container = self.process().container;
        match self {
            Self::Start { .. } => write!(f, "start container {container}"),
            Self::Signal { signal, .. } => write!(f, "send signal {signal} to container {container}"),
            Self::Resize { .. } => write!(f, "resize the terminal of container {container}"),
            Self::Freeze { frozen: true, .. } => write!(f, "freeze container {container}"),
            Self::Freeze { frozen: false, .. } => write!(f, "thaw container {container}"),
            Self::Processes { .. } => write!(f, "list the processes of container {container}"),
            Self::Statistics { .. } => write!(f, "read the resource usage of container {container}"),
            Self::Update { .. } => write!(f, "set limits of container {container}"),
            Self::ChangeInterfaces { .. } => write!(f, "change network interfaces of container {container}"),
            Self::RemoveInterface { name, .. } => {
                write!(f, "remove network interface {name} from container {container}")
            }
            Self::Delete { .. } => write!(f, "delete container {container}"),
        }
    }
}
