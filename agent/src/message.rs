//! The messages of the protocol.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxResources, Process, Spec};
use serde::{Deserialize, Serialize};

use crate::network::{AttachedInterface, InterfaceChange};

/// Id of a process: a container's first one, or a further one that was executed in it.
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
    /// Number of characters in a line.
    pub columns: u16,
}

/// Destinations of a process's standard streams: vsock ports of the host, to each of which the agent opens one
/// connection.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdio {
    /// The process gets a pseudo-terminal of its container. One connection carries both directions.
    Terminal {
        /// Port of the connection.
        port: u32,
        /// Initial size of the terminal, if known.
        size: Option<TerminalSize>,
        /// Whether the terminal writes lines without a carriage return. For output that does not go to a terminal of
        /// the user.
        bare_lines: bool,
    },
    /// Separate streams. The process gets `/dev/null` for an absent one.
    Streams {
        /// Port for standard input. The host signals the end of file by a half-close.
        stdin: Option<u32>,
        /// Port for standard output. The agent closes the connection after the last writer.
        stdout: Option<u32>,
        /// Port for standard error.
        stderr: Option<u32>,
    },
}

/// A compiled system call filter.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SeccompFilter {
    /// `SECCOMP_FILTER_FLAG_*` of the kernel.
    pub flags: u32,
    /// Classic BPF instructions. Each number is one `struct sock_filter` of the kernel: from the most significant bit,
    /// 16 bits of `code`, 8 of `jt`, 8 of `jf` and 32 of `k`.
    pub program: Vec<u64>,
}

/// Kind of a special file.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SpecialKind {
    /// A character device.
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A stream socket. Connections to it are forwarded to the socket of the host.
    Socket,
}

/// A file of the guest that represents a file of the host which cannot be shared. It is the source of a bind mount.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SpecialFile {
    /// Its name, unique in the container: [`SpecialFile::path`] is the mount's source.
    pub name: String,
    /// Its kind.
    pub kind: SpecialKind,
    /// Its mode.
    pub mode: u32,
    /// User id of its owner.
    pub uid: u32,
    /// Group id of its owner.
    pub gid: u32,
}

impl SpecialFile {
    /// Its path in the guest.
    #[must_use]
    pub fn path(&self, container: &str) -> PathBuf {
        Path::new(crate::SPECIAL_DIR).join(container).join(&self.name)
    }
}

/// A special file and, for a socket, the host port that its connections are forwarded to.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AttachedFile {
    /// The file.
    pub file: SpecialFile,
    /// The port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
}

/// Everything that is needed to make a container.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CreateContainer {
    /// Its id, unique in the sandbox and a single path component.
    pub container: String,
    /// The OCI specification. `root.path` and the sources of bind mounts are paths in the guest.
    pub spec: Spec,
    /// Path of its bundle on the host, for the state that hooks read.
    pub bundle: PathBuf,
    /// Streams of its first process.
    pub stdio: Stdio,
    /// The filter of all its processes. It replaces the specification's `linux.seccomp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<SeccompFilter>,
    /// Interfaces of its network namespace, without the loopback interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<AttachedInterface>,
    /// Sources of its bind mounts that are not in a share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub special_files: Vec<AttachedFile>,
    /// The host port for the name server at [`crate::NAME_SERVER`], if the container uses that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_server: Option<u32>,
}

/// A further process in a container.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Exec {
    /// Its id; `exec` is always present.
    pub process: ProcessId,
    /// The specification of the process.
    pub spec: Process,
    /// Its streams.
    pub stdio: Stdio,
    /// An existing cgroup below the container's, in which the process is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
}

/// A request of the VMM.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Makes a container, up to the execution of its program.
    Create(Box<CreateContainer>),
    /// Attaches a further network interface to a container.
    AddInterface {
        /// The container's id.
        container: String,
        /// The interface.
        interface: Box<AttachedInterface>,
        /// The host port for the name server if the container uses it from now on: see
        /// [`CreateContainer::name_server`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name_server: Option<u32>,
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
    /// Executes the program of a created container.
    Start {
        /// The container's id.
        container: String,
    },
    /// Runs a further process in a created or running container.
    Exec(Box<Exec>),
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
    /// Sets the number of online vCPUs, which are those with the lowest numbers. Answered when the change is complete,
    /// but not before the first container is made.
    SetCpus {
        /// The number, at least 1.
        count: u32,
    },
    /// Reads the guest's time of day.
    ReadClock,
    /// Corrects the guest's time of day.
    AdjustClock {
        /// Nanoseconds to add. Negative if the guest's clock is ahead.
        missing_ns: i64,
        /// Whether to set the clock at once. Otherwise it runs faster or slower until it is correct.
        set: bool,
    },
    /// Adapts the memory limit of all containers to the machine's memory.
    FollowMemory {
        /// Bytes of memory that were added after the boot.
        plugged: u64,
    },
    /// Deletes the record of a stopped container and what remains of it.
    Delete {
        /// The container's id.
        container: String,
    },
    /// Writes all data back to the shares and resets the machine. There is no reply.
    PowerOff,
}

/// A request with its id.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Call {
    /// Chosen by the VMM. The reply contains it.
    pub id: u64,
    /// The request.
    pub request: Request,
}

/// A process of a container, from the guest's `/proc`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct GuestProcess {
    /// Its pid in the container.
    pub pid: i32,
    /// Its effective user id.
    pub uid: u32,
    /// The line in `/proc/PID/stat`. Its pids are those of the guest's initial pid namespace.
    pub stat: String,
    /// Its arguments, joined with spaces. Empty for a zombie.
    pub arguments: String,
}

/// The processes of a container.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ProcessList {
    /// Milliseconds since the guest's kernel started its clock, to which the start times of processes relate.
    pub uptime_ms: u64,
    /// The processes.
    pub processes: Vec<GuestProcess>,
}

/// The result of a successful request.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// The request has no result.
    Done,
    /// `Create` or `Exec` made a process.
    Process {
        /// Its pid in the guest's initial pid namespace.
        pid: i32,
    },
    /// The processes of a container.
    Processes(ProcessList),
    /// Resource usage of a container: names and contents of the files of its cgroup, as `memory.current`.
    Statistics(BTreeMap<String, String>),
    /// The guest's time of day.
    Clock {
        /// Nanoseconds since 1970.
        guest_ns: i64,
    },
}

/// Kind of a failure. It determines the exit status that the caller's user sees.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The program to run does not exist.
    ProgramNotFound,
    /// The program to run cannot be executed.
    ProgramNotExecutable,
    /// The specification asks for something invalid or unsupported.
    InvalidSpec,
    /// There is no such container or process.
    NotFound,
    /// The id is already in use.
    Exists,
    /// The container is not in the state the request needs.
    WrongState,
    /// A system call failed.
    System,
    /// There was no answer before the deadline.
    Timeout,
    /// The guest or its agent has ended.
    GuestDied,
}

/// The result of a failed request.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Failure {
    /// Its kind.
    pub kind: FailureKind,
    /// The step that failed and its object, as `mount /proc`.
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

/// The exit status of a process.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It exited with this status.
    Exited(u8),
    /// It was ended by this signal.
    Signaled(u8),
}

impl ExitStatus {
    /// The status as shells, runc and engines show it: 128 plus the signal's number for an end by a signal.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128_u8.saturating_add(signal),
        }
    }
}

/// An event that the agent reports.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A process ended. Its output is already delivered.
    Exited {
        /// The process.
        process: ProcessId,
        /// Its exit status.
        status: ExitStatus,
    },
    /// There was an OOM kill in this container.
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
    /// Nanoseconds from the start of the guest kernel's clock to the start of PID 1.
    pub started_ns: u64,
    /// Nanoseconds from the start of the guest kernel's clock to the sending of this message.
    pub ready_ns: u64,
}

/// A message of the agent.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FromAgent {
    /// The first message.
    Hello(Hello),
    /// The answer to a call.
    Reply {
        /// The call's id.
        id: u64,
        /// The result.
        result: Result<Response, Failure>,
    },
    /// An event.
    Event(Event),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_a_signal_is_the_one_of_a_shell() {
        assert_eq!(ExitStatus::Exited(255).code(), 255);
        assert_eq!(ExitStatus::Signaled(9).code(), 137);
        assert_eq!(ExitStatus::Signaled(200).code(), 255);
    }

    #[test]
    fn a_specification_survives_encoding() {
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
