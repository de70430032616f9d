//! The control socket: how the runtime's commands reach a sandbox.
//!
//! A connection carries frames ([`agent::frame`]): [`Call`]s from the client, one [`Answer`] for each from the VMM, in
//! any order. Descriptors travel as `SCM_RIGHTS` with the frame of the request that needs them. The first connection
//! is a socket pair the VMM inherits; its first request is [`Request::Configure`], and requests behind it may be sent
//! without waiting. Every other client connects to `control.sock`.

mod client;
mod connection;

pub use crate::fs::ShareOptions;
pub use client::{Client, ClientError};
pub use connection::{Connection, ConnectionError};

use std::collections::BTreeMap;
use std::path::PathBuf;

use agent::{
    ExitStatus, Failure, Interface, InterfaceChange, ProcessId, ProcessList, SeccompFilter, SpecialFile, SpecialKind,
    TerminalSize,
};
use oci_spec::runtime::{LinuxResources, Process, Spec};
use serde::{Deserialize, Serialize};

use crate::config::SandboxConfig;

/// The descriptors behind a process's standard streams, in the order in which they are passed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StdioFds {
    /// Two descriptors: a terminal, already in raw mode, to read from, and the same or something else to write to.
    Terminal {
        /// Size the guest's terminal starts with, where known.
        size: Option<TerminalSize>,
        /// Whether lines end as they are written, without a carriage return: the output goes to no terminal.
        bare_lines: bool,
    },
    /// Up to three descriptors: those of the streams that are true.
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
    /// How many descriptors come with it.
    #[must_use]
    pub fn count(self) -> usize {
        match self {
            Self::Terminal { .. } => 2,
            Self::Streams { stdin, stdout, stderr } => [stdin, stdout, stderr].into_iter().filter(|open| *open).count(),
        }
    }
}

/// A container to make. Paths in the specification are the guest's.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NewContainer {
    /// Its id.
    pub container: String,
    /// The OCI specification.
    pub spec: Spec,
    /// Its bundle's directory on the host, which hooks are told.
    pub bundle: PathBuf,
    /// Streams of its first process.
    pub stdio: StdioFds,
    /// The filter of its system calls, in the place of `linux.seccomp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<SeccompFilter>,
    /// Interfaces of its network namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Sources of its bind mounts that are in no share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub special_files: Vec<SpecialFile>,
    /// It asks the name server at [`agent::NAME_SERVER`] in the VMM's network namespace.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub name_server: bool,
}

impl NewContainer {
    /// How many descriptors come with it: of streams, of interfaces and of sockets.
    #[must_use]
    pub fn counts(&self) -> [usize; 3] {
        let sockets = self.special_files.iter().filter(|file| file.kind == SpecialKind::Socket);
        [self.stdio.count(), self.interfaces.len(), sockets.count()]
    }
}

/// What a client asks for.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Make and start the machine. Only first, and only on the inherited connection. Answered when the vCPUs run.
    Configure(SandboxConfig),
    /// Stand in for a container of another sandbox: end when it does, with its status, and hand signals on to it. Only first,
    /// and only on the inherited connection; comes with a connection to that sandbox, over which the container was made.
    Join {
        /// The container's id.
        container: String,
    },
    /// Let the guest see a directory or file; comes with one `O_PATH` descriptor of it.
    AddShare {
        /// Its name: `CONTAINER/rootfs` or `CONTAINER/VOLUME`.
        name: String,
        /// How it is served.
        options: ShareOptions,
    },
    /// Take a share away. What the guest still has open of it answers `ESTALE`.
    RemoveShare {
        /// Its name.
        name: String,
    },
    /// Make a container; comes with the descriptors of its streams, behind them a tap for each interface, and an `O_PATH`
    /// descriptor of each socket among its special files.
    Create(Box<NewContainer>),
    /// Give a container a further interface; comes with its tap.
    AddInterface {
        /// The container's id.
        container: String,
        /// The interface.
        interface: Box<Interface>,
        /// As [`NewContainer::name_server`], for a container that did not ask it until now.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        name_server: bool,
    },
    /// Change network interfaces of a container. What any of them loses goes before one gets anything.
    ChangeInterfaces {
        /// The container's id.
        container: String,
        /// The changes, at most one of each interface.
        changes: Vec<InterfaceChange>,
    },
    /// Take an interface away from a container. Its device can be used again when its tap is gone.
    RemoveInterface {
        /// The container's id.
        container: String,
        /// The interface's name.
        name: String,
    },
    /// Execute a created container's program.
    Start {
        /// The container's id.
        container: String,
    },
    /// Run a further process; comes with the descriptors of `stdio`.
    Exec {
        /// Its id; `exec` is present.
        process: ProcessId,
        /// What to run.
        spec: Box<Process>,
        /// Its streams.
        stdio: StdioFds,
        /// A cgroup below the container's, which exists, to run it in.
        cgroup: Option<PathBuf>,
    },
    /// Send a signal.
    Signal {
        /// To whom.
        process: ProcessId,
        /// Its number.
        signal: i32,
        /// To every process of the container.
        all: bool,
    },
    /// Tell a process's terminal its new size.
    Resize {
        /// Whose terminal.
        process: ProcessId,
        /// The size.
        size: TerminalSize,
    },
    /// Stop every process of a container where it is, or let them go on.
    Freeze {
        /// The container's id.
        container: String,
        /// Whether they shall be stopped.
        frozen: bool,
    },
    /// List the processes of a container. Answered with [`Reply::Processes`].
    Processes {
        /// The container's id.
        container: String,
    },
    /// Read what a container uses. Answered with [`Reply::Statistics`].
    Statistics {
        /// The container's id.
        container: String,
    },
    /// Set limits of a container. Those that are absent stay as they are.
    Update {
        /// The container's id.
        container: String,
        /// The limits.
        resources: Box<LinuxResources>,
    },
    /// Give the machine more memory, or take some away, but nothing of what it booted with. Answered with [`Reply::Memory`]
    /// when the guest has done it, or has given back all that it can; fails when it does not take all of it.
    SetMemory {
        /// How much it shall have in MiB.
        mib: u64,
    },
    /// Have the guest use more or fewer vCPUs. Answered when it does; fails for more than
    /// [`SandboxConfig::vcpus_most`] or than KVM runs.
    SetVcpus {
        /// How many, 1 at least.
        count: u8,
    },
    /// Answered with [`Reply::OutOfMemory`] when the guest's kernel has killed processes of the container for want of
    /// memory more often than the caller knows of.
    AwaitOutOfMemory {
        /// The container's id.
        container: String,
        /// How often the caller knows of; `None` has the number told at once.
        known: Option<u64>,
    },
    /// Forget a stopped container.
    Delete {
        /// The container's id.
        container: String,
    },
    /// Answered with [`Reply::Exited`] when the process ended and its output was handed over, whenever that was.
    Wait {
        /// Which process.
        process: ProcessId,
    },
    /// What state a container is in.
    Status {
        /// The container's id.
        container: String,
    },
    /// When each stage of the start was reached.
    Timeline,
}

/// A request on the wire.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Call {
    /// Chosen by the client; the answer carries it back.
    pub id: u64,
    /// The request.
    pub request: Request,
}

/// State of a container that the VMM knows.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Its program has not been executed yet.
    Created,
    /// Its first process runs.
    Running,
    /// Its processes are stopped where they are.
    Paused,
    /// Its first process ended.
    Stopped(ExitStatus),
}

/// A stage of the start.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Stage {
    /// What had been done.
    pub name: String,
    /// When, in nanoseconds of the host's `CLOCK_MONOTONIC`.
    pub at_ns: u64,
}

/// A request that succeeded.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// There is nothing to tell.
    Done,
    /// A process was made; its pid in the guest.
    Process {
        /// The pid.
        pid: i32,
    },
    /// The process ended so.
    Exited(ExitStatus),
    /// The container's state.
    Status(Status),
    /// The stages of the start, earliest first.
    Timeline(Vec<Stage>),
    /// The processes of a container.
    Processes(ProcessList),
    /// What a container uses: names and contents of the files of its cgroup in the guest, as `memory.current`.
    Statistics(BTreeMap<String, String>),
    /// How often memory has run out in a container.
    OutOfMemory(u64),
    /// The machine's memory in MiB.
    Memory(u64),
}

/// The end of a call.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Answer {
    /// The call's id.
    pub id: u64,
    /// How it went.
    pub result: Result<Reply, Failure>,
}
