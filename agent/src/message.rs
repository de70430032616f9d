//! The messages of the protocol.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxResources, Process, Spec};
use serde::{Deserialize, Serialize};

use crate::network::{AttachedInterface, InterfaceChange};

/// One process the agent started: a container's first one, or one that was executed in it later.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct ProcessId {
    /// Id of the container, unique in its sandbox.
    pub container: String,
    /// Id of the exec, unique in its container; absent for the container's first process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<String>,
}

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TerminalSize {
    /// Number of lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

/// Where a process's standard streams lead: host vsock ports the agent connects to, one connection a stream.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdio {
    /// The process gets a pseudo-terminal of its container; one connection carries both directions.
    Terminal {
        /// Port of the connection.
        port: u32,
        /// Size the terminal starts with, where known.
        size: Option<TerminalSize>,
        /// Whether lines end as they are written, without a carriage return: there is no terminal at the other end.
        bare_lines: bool,
    },
    /// Separate streams; the process gets `/dev/null` for an absent one.
    Streams {
        /// Port that standard input is read from. End of file is the host's half-close.
        stdin: Option<u32>,
        /// Port that standard output goes to. The agent closes it when the last writer did.
        stdout: Option<u32>,
        /// Port that standard error goes to.
        stderr: Option<u32>,
    },
}

/// A system call filter, compiled.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SeccompFilter {
    /// `SECCOMP_FILTER_FLAG_*` of the kernel.
    pub flags: u32,
    /// Classic BPF. Each number is one `struct sock_filter` of the kernel: from the most significant bit down 16 bits
    /// of `code`, 8 of `jt`, 8 of `jf` and 32 of `k`.
    pub program: Vec<u64>,
}

/// What a special file is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SpecialKind {
    /// A character device.
    Device {
        /// The driver's number.
        major: u32,
        /// The device's number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// The driver's number.
        major: u32,
        /// The device's number.
        minor: u32,
    },
    /// A stream socket: who connects to it reaches the host's.
    Socket,
}

/// A file of the host that cannot be shared, and that the guest gets one of its own of: the source of a bind mount.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SpecialFile {
    /// Its name, unique in the container: [`SpecialFile::path`] is the mount's source.
    pub name: String,
    /// What it is.
    pub kind: SpecialKind,
    /// Its permissions.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

impl SpecialFile {
    /// Where the guest has it.
    #[must_use]
    pub fn path(&self, container: &str) -> PathBuf {
        Path::new(crate::SPECIAL_DIR).join(container).join(&self.name)
    }
}

/// A special file and, for a socket, the host port that leads to the host's.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AttachedFile {
    /// The file.
    pub file: SpecialFile,
    /// The port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
}

/// Everything needed to make a container.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CreateContainer {
    /// Its id, unique in the sandbox: one path component.
    pub container: String,
    /// The OCI specification. `root.path` and the source of every bind mount are already paths in the guest.
    pub spec: Spec,
    /// Its bundle's directory on the host, which hooks are told.
    pub bundle: PathBuf,
    /// Streams of its first process.
    pub stdio: Stdio,
    /// What stands in the place of the specification's `linux.seccomp`: the filter of all its processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<SeccompFilter>,
    /// Interfaces of its network namespace, beside the loopback.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<AttachedInterface>,
    /// Sources of its bind mounts that are in no share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub special_files: Vec<AttachedFile>,
    /// The host port that leads to the name server at [`crate::NAME_SERVER`], if the container is told to ask that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_server: Option<u32>,
}

/// A further process in a container.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Exec {
    /// Its id: `exec` is always present.
    pub process: ProcessId,
    /// What to run, and as whom.
    pub spec: Process,
    /// Its streams.
    pub stdio: Stdio,
    /// A cgroup below the container's, which exists, for it to be born in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
}

/// What the VMM asks of the agent.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Make a container, up to the point where its program would be executed.
    Create(Box<CreateContainer>),
    /// Give a container a further network interface.
    AddInterface {
        /// The container's id.
        container: String,
        /// The interface.
        interface: Box<AttachedInterface>,
        /// The host port that leads to the name server, see [`CreateContainer::name_server`], if the container is told to ask that
        /// from now on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name_server: Option<u32>,
    },
    /// Change network interfaces of a container. What any of them loses goes before one gets anything.
    ChangeInterfaces {
        /// The container's id.
        container: String,
        /// The changes, at most one of each interface.
        changes: Vec<InterfaceChange>,
    },
    /// Take a network interface away from a container.
    RemoveInterface {
        /// The container's id.
        container: String,
        /// The interface's name.
        name: String,
    },
    /// Execute the program of a created container.
    Start {
        /// The container's id.
        container: String,
    },
    /// Run a further process in a created or running container.
    Exec(Box<Exec>),
    /// Send a signal.
    Signal {
        /// To whom.
        process: ProcessId,
        /// Its number, as in the guest's kernel.
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
    /// Stop every process of a container where it is, or let them go on. Answered when they all have.
    Freeze {
        /// The container's id.
        container: String,
        /// Whether they shall be stopped.
        frozen: bool,
    },
    /// List the processes of a container.
    Processes {
        /// The container's id.
        container: String,
    },
    /// Read what a container uses.
    Statistics {
        /// The container's id.
        container: String,
    },
    /// Set limits of a container. Those that are absent stay as they are, and so do the rules for devices.
    Update {
        /// The container's id.
        container: String,
        /// The limits.
        resources: Box<LinuxResources>,
    },
    /// Use so many vCPUs, those with the lowest numbers. Answered when they are online and the others are not, not before the
    /// first container was made.
    SetCpus {
        /// How many, 1 at least.
        count: u32,
    },
    /// Tell the guest's time of day.
    ReadClock,
    /// Correct the guest's time of day.
    AdjustClock {
        /// What it lacks, in nanoseconds; negative where it is ahead.
        missing_ns: i64,
        /// Whether to set the clock at once. Otherwise it runs faster or slower until the difference is made up for.
        set: bool,
    },
    /// Let containers use the machine's memory: it has so many bytes more now than it booted with.
    FollowMemory {
        /// The bytes.
        plugged: u64,
    },
    /// Forget a stopped container and remove what is left of it.
    Delete {
        /// The container's id.
        container: String,
    },
    /// Write everything back to the shares and reset the machine. Never answered: the machine is gone.
    PowerOff,
}

/// A request on the wire.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Call {
    /// Chosen by the VMM; the reply carries it back.
    pub id: u64,
    /// The request.
    pub request: Request,
}

/// A process of a container, as the guest's `/proc` shows it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct GuestProcess {
    /// Its pid in the container.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// The line of `/proc/PID/stat`. Pids in it are those of the guest's initial pid namespace.
    pub stat: String,
    /// Its arguments, with spaces between; empty for a zombie.
    pub arguments: String,
}

/// The processes of a container.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ProcessList {
    /// Milliseconds since the guest's kernel started its clock, in whose terms processes tell when they began.
    pub uptime_ms: u64,
    /// The processes.
    pub processes: Vec<GuestProcess>,
}

/// A request that succeeded.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// There is nothing to tell.
    Done,
    /// `Create` or `Exec` made a process.
    Process {
        /// Its pid in the guest's initial pid namespace.
        pid: i32,
    },
    /// The processes of a container.
    Processes(ProcessList),
    /// What a container uses: names and contents of the files of its cgroup, as `memory.current`.
    Statistics(BTreeMap<String, String>),
    /// The guest's time of day.
    Clock {
        /// Nanoseconds since 1970.
        guest_ns: i64,
    },
}

/// What kind of failure a request met; decides the exit status the caller's user sees.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The program to run does not exist.
    ProgramNotFound,
    /// The program to run cannot be executed.
    ProgramNotExecutable,
    /// The specification asks for what cannot be given.
    InvalidSpec,
    /// No such container or process.
    NotFound,
    /// The id is taken.
    Exists,
    /// The container is not in the state the request needs.
    WrongState,
    /// A system call failed.
    System,
    /// No answer came before the step's deadline.
    Timeout,
    /// The guest or its agent is gone.
    GuestDied,
}

/// A request that failed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Failure {
    /// What kind.
    pub kind: FailureKind,
    /// What the agent was doing, as `mount /proc`: the step and its object.
    pub step: String,
    /// The cause.
    pub cause: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.step, self.cause)
    }
}

impl std::error::Error for Failure {}

/// How a process ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It exited by itself, with this status.
    Exited(u8),
    /// This signal ended it.
    Signaled(u8),
}

impl ExitStatus {
    /// The status as a shell, runc and every engine tell it: 128 and the signal's number for a death by signal.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128_u8.saturating_add(signal),
        }
    }
}

/// What the agent tells without being asked.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A process ended. All it had written before is already on its streams.
    Exited {
        /// Which.
        process: ProcessId,
        /// How.
        status: ExitStatus,
    },
    /// The kernel killed a process of this container for want of memory.
    OutOfMemory {
        /// The container's id.
        container: String,
    },
}

/// The agent's first message.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Hello {
    /// [`crate::VERSION`] of the agent.
    pub version: u32,
    /// `uname -r` of the guest.
    pub kernel: String,
    /// Nanoseconds since the guest's kernel started its clock, when PID 1 began.
    pub started_ns: u64,
    /// The same, when this message was sent.
    pub ready_ns: u64,
}

/// Everything the agent sends.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FromAgent {
    /// First, once.
    Hello(Hello),
    /// The end of a call.
    Reply {
        /// The call's id.
        id: u64,
        /// How it went.
        result: Result<Response, Failure>,
    },
    /// Something happened.
    Event(Event),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_told_as_a_shell_does() {
        assert_eq!(ExitStatus::Exited(255).code(), 255);
        assert_eq!(ExitStatus::Signaled(9).code(), 137);
        assert_eq!(ExitStatus::Signaled(200).code(), 255);
    }

    #[test]
    fn a_specification_survives_the_wire() {
        let spec = Spec::default();
        let create = CreateContainer {
            container: "web".into(),
            spec: spec.clone(),
            bundle: "/bundle".into(),
            stdio: Stdio::Streams { stdin: None, stdout: Some(7), stderr: None },
            seccomp: None,
            interfaces: Vec::new(),
            special_files: Vec::new(),
            name_server: None,
        };
        let call = Call { id: 3, request: Request::Create(Box::new(create)) };
        let mut bytes = crate::frame::encode(&call).unwrap();
        let back: Call = crate::frame::take(&mut bytes).unwrap().unwrap();
        let Request::Create(back) = back.request else { panic!("another request came back") };
        assert_eq!(back.spec, spec);
        assert_eq!(back.stdio, Stdio::Streams { stdin: None, stdout: Some(7), stderr: None });
    }
}
