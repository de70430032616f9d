//! The messages of the protocol.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::container::{CreateContainer, Exec};
use crate::container_request::ContainerRequest;
use crate::network::AttachedInterface;
use crate::process::{ExitStatus, ProcessId, ProcessList};
use crate::seed::Seed;
use crate::stream_secret::StreamSecret;

/// A request of the VMM.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Tells the agent the secret that its streams begin with. It is the first request, and comes once.
    SetStreamSecret {
        /// The secret.
        secret: StreamSecret,
    },
    /// Makes the guest's random numbers independent of those of other guests that start from the same template. It is the first
    /// request to such a guest, and nothing has read random numbers before.
    SeedRandom {
        /// New random bytes.
        seed: Seed,
    },
    /// Prepares the agent for the end of its machine, which is saved as a template. When the connection ends, which it does in
    /// the machines that start from the template, the agent connects again.
    PrepareTemplate,
    /// Makes a container, up to the execution of its program.
    Create(Box<CreateContainer>),
    /// A request about a container that a client sent and the VMM passes on unchanged.
    Container(ContainerRequest),
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
    /// Runs a further process in a created or running container.
    Exec(Box<Exec>),
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
        offset_ns: i64,
        /// Whether to set the clock at once. Otherwise it runs faster or slower until it is correct.
        set: bool,
    },
    /// Adapts the memory limit of all containers to the machine's memory.
    SetPluggedMemory {
        /// Bytes of memory that were added after the boot.
        plugged: u64,
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
    use oci_spec::runtime::Spec;

    use super::*;
    use crate::container::ContainerConfig;
    use crate::process::Stdio;

    #[test]
    fn a_specification_survives_encoding() {
        let spec = Spec::default();
        let create = CreateContainer {
            config: ContainerConfig { id: "web".into(), spec: spec.clone(), bundle: "/bundle".into(), seccomp: None },
            stdio: Stdio::Streams { stdin: None, stdout: Some(7), stderr: None },
            interfaces: Vec::new(),
            special_files: Vec::new(),
            name_server: None,
        };
        let call = Call { id: 3, request: Request::Create(Box::new(create)) };
        let mut bytes = crate::frame::encode(&call).unwrap();
        let back: Call = crate::frame::decode(&mut bytes).unwrap().unwrap();
        let Request::Create(back) = back.request else { panic!("another request came back") };
        assert_eq!(back.config.spec, spec);
        assert_eq!(back.stdio, Stdio::Streams { stdin: None, stdout: Some(7), stderr: None });
    }
}
