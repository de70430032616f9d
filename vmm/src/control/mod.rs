//! The protocol of the control socket, over which the runtime controls a sandbox.
//!
//! A connection carries frames ([`agent::frame`]). The client sends [`Call`]s, and the VMM sends one [`Answer`] to each, in any
//! order. Descriptors are passed as `SCM_RIGHTS` with the frame of the request that needs them. The first connection is a
//! socket pair that the VMM inherits. Its first request is [`Request::Configure`] or [`Request::BecomeProxy`]; the client may send
//! further requests without waiting for the answer. All other clients connect to `control.sock`.

mod client;
mod connection;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;

pub use crate::config::ShareOptions;
pub use client::{Client, ClientError};
pub(crate) use connection::SCM_MAX_FD;
pub use connection::{Connection, ConnectionError};

use std::collections::BTreeMap;
use std::path::PathBuf;

use agent::{
    ContainerConfig, ContainerRequest, ExitStatus, Failure, Interface, ProcessId, ProcessList, SpecialFile,
    SpecialKind, TerminalSize,
};
use oci_spec::runtime::Process;
use serde::{Deserialize, Serialize};

use crate::config::{JailConfig, SandboxConfig};

/// The descriptors of a process's standard streams, in the order in which they are passed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StdioFds {
    /// Two descriptors: a terminal in raw mode for the input, and the same or another descriptor for the output.
    Terminal {
        /// Initial size of the guest's terminal, if known.
        size: Option<TerminalSize>,
        /// Whether the guest's terminal adds no carriage return to the end of a line, because the output goes to no terminal.
        no_carriage_return: bool,
    },
    /// Up to three descriptors: one for each stream that is `true`.
    Streams {
        /// Whether there is a standard input.
        stdin: bool,
        /// Whether there is a standard output.
        stdout: bool,
        /// Whether there is a standard error.
        stderr: bool,
    },
}

impl StdioFds {
    /// Number of descriptors that are passed with it.
    #[must_use]
    pub fn count(self) -> usize {
        match self {
            Self::Terminal { .. } => 2,
            Self::Streams { stdin, stdout, stderr } => [stdin, stdout, stderr].into_iter().filter(|open| *open).count(),
        }
    }
}

/// A container to create.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NewContainer {
    /// Its configuration.
    pub config: ContainerConfig,
    /// Standard streams of its first process.
    pub stdio: StdioFds,
    /// Interfaces of its network namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Sources of its bind mounts that are not in a share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub special_files: Vec<SpecialFile>,
    /// Whether the container uses the name server at [`agent::NAME_SERVER`] of the VMM's network namespace.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub name_server: bool,
}

impl NewContainer {
    /// Numbers of the descriptors that are passed with it: of streams, of interfaces and of sockets.
    #[must_use]
    pub fn counts(&self) -> [usize; 3] {
        let sockets = self.special_files.iter().filter(|file| file.kind == SpecialKind::Socket);
        [self.stdio.count(), self.interfaces.len(), sockets.count()]
    }
}

/// A request of a client.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Build and start the machine. Only valid as the first request of the inherited connection. Answered when the vCPUs run. Passes
    /// the descriptors of [`crate::config::SandboxFiles`].
    Configure(SandboxConfig),
    /// Be the proxy of a container in another sandbox: forward signals to it, and end with its exit status when it ends. Only
    /// valid as the first request of the inherited connection. Passes the connection to that sandbox over which the container
    /// is created.
    BecomeProxy {
        /// The container's id.
        container: String,
        /// How the process confines itself.
        jail: JailConfig,
    },
    /// Share a directory or file with the guest. Passes an `O_PATH` descriptor of it.
    AddShare {
        /// Its name: `CONTAINER/rootfs` or `CONTAINER/VOLUME`.
        name: String,
        /// Options of the share.
        options: ShareOptions,
    },
    /// Remove a share. Files of it that the guest has open return `ESTALE`.
    RemoveShare {
        /// Its name.
        name: String,
    },
    /// Create a container. Passes the descriptors of its streams, then a tap for each interface, then an `O_PATH` descriptor of
    /// each socket among its special files.
    Create(Box<NewContainer>),
    /// A request about a container that the agent carries out. `Processes` is answered with [`Reply::Processes`], `Statistics` with
    /// [`Reply::Statistics`], all others with [`Reply::Done`].
    Container(ContainerRequest),
    /// Add a network interface to a container. Passes its tap.
    AddInterface {
        /// The container's id.
        container: String,
        /// The interface.
        interface: Box<Interface>,
        /// As [`NewContainer::name_server`], for a container that did not use the name server before.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        name_server: bool,
    },
    /// Execute a further process in a container. Passes the descriptors of `stdio`.
    Exec {
        /// Its id; `exec` is present.
        process: ProcessId,
        /// The process's specification.
        spec: Box<Process>,
        /// Its standard streams.
        stdio: StdioFds,
        /// An existing cgroup below the container's, in which the process runs.
        cgroup: Option<PathBuf>,
    },
    /// Change the machine's memory. The memory of the boot stays. Answered with [`Reply::Memory`] when the guest has plugged all
    /// blocks, or has unplugged as many as it can. Fails if the guest does not plug all of them in time.
    SetMemory {
        /// The machine's memory in MiB.
        mib: u64,
    },
    /// Change the number of vCPUs that the guest uses. Answered when the guest uses them. Fails for more vCPUs than
    /// [`SandboxConfig::max_vcpus`] or than KVM supports.
    SetVcpus {
        /// Number of vCPUs, at least 1.
        count: u8,
    },
    /// Wait for an OOM kill in a container. Answered with [`Reply::OutOfMemory`] when there were more OOM kills than the caller
    /// knows of.
    AwaitOutOfMemory {
        /// The container's id.
        container: String,
        /// The number of OOM kills that the caller knows of. With `None` the answer comes at once.
        known: Option<u64>,
    },
    /// Wait for the end of a process. Answered with [`Reply::Exited`] when it has ended and all its output was written. The
    /// process may have ended before the request.
    Wait {
        /// The process.
        process: ProcessId,
    },
    /// Read the state of a container. Answered with [`Reply::Status`].
    Status {
        /// The container's id.
        container: String,
    },
    /// Read the times of the start's stages. Answered with [`Reply::Timeline`].
    Timeline,
}

/// A frame from the client to the VMM.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Call {
    /// Chosen by the client. The answer has the same id.
    pub id: u64,
    /// The request.
    pub request: Request,
}

/// State of a container.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Its program has not been executed yet.
    Created,
    /// Its first process runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its first process ended.
    Stopped(ExitStatus),
}

/// A stage of the start.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Stage {
    /// What has been done.
    pub name: String,
    /// The time in nanoseconds of the host's `CLOCK_MONOTONIC`.
    pub at_ns: u64,
}

/// The result of a request that succeeded.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The request has no result.
    Done,
    /// A process was created.
    Process {
        /// Its pid in the guest.
        pid: i32,
    },
    /// The process's exit status.
    Exited(ExitStatus),
    /// The container's state.
    Status(Status),
    /// The stages of the start, earliest first.
    Timeline(Vec<Stage>),
    /// The processes of a container.
    Processes(ProcessList),
    /// The resource usage of a container: names and contents of files of its cgroup in the guest, for example `memory.current`.
    Statistics(BTreeMap<String, String>),
    /// The number of OOM kills in a container.
    OutOfMemory(u64),
    /// The machine's memory in MiB.
    Memory(u64),
    /// The machine runs, but its template cannot be used: it boots.
    TemplateRefused {
        /// Why the template cannot be used.
        cause: String,
    },
}

/// A frame from the VMM to the client.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Answer {
    /// The call's id.
    pub id: u64,
    /// The result of the call.
    pub result: Result<Reply, Failure>,
}
