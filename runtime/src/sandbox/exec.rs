//! Starts a further process in a container.

use std::path::PathBuf;
use std::time::Duration;

use agent::ProcessId;
use oci_spec::runtime::Process;
use thiserror::Error;
use vmm::control::{Client, Request, Status};

use super::connection::{Connection, RequestError};
use super::control_socket::control;
use super::record::{Phase, Record};
use super::status::request_status;
use super::store::{StateError, Store};
use crate::base::container_id::ContainerId;
use crate::host::signals::Signals;
use crate::terminal::stdio::ProcessStdio;

/// Time limit for the guest to start a process.
const EXEC_TIMEOUT: Duration = Duration::from_secs(30);

/// Time limit in a paused container, which may stay paused for long: one year.
const PAUSED_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The reason why a process was not started. Where runc has a message for it, it is runc's.
#[derive(Debug, Error)]
pub(crate) enum ExecError {
    #[error("container is still being created")]
    BeingCreated,
    #[error("cannot exec in a stopped container")]
    Stopped,
    #[error("cannot exec in a paused container (use --ignore-paused to override)")]
    Paused,
    #[error(transparent)]
    State(#[from] StateError),
    /// The VMM cannot be reached.
    #[error(transparent)]
    Connect(RequestError),
    /// The guest did not start the process.
    #[error(transparent)]
    Start(RequestError),
}

impl ExecError {
    /// The exit status of a command that fails with this error; `None` if it depends on the command.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Connect(error) | Self::Start(error @ RequestError::Interrupted(_)) => error.exit_code(),
            _ => None,
        }
    }
}

/// A process to start.
#[derive(Debug)]
pub(crate) struct ExecRequest {
    /// A name that is unique among the processes of the container.
    pub(crate) name: String,
    pub(crate) process: Process,
    /// Existing cgroup below the container's.
    pub(crate) cgroup: Option<PathBuf>,
}

/// A connection to the sandbox of a container in which a process can be started.
#[derive(Debug)]
pub(crate) struct ExecClient {
    client: Client,
    container: ContainerId,
    timeout: Duration,
}

impl ExecClient {
    /// Connects to the sandbox of a container. With `ignore_paused` the container may be paused: the process then starts when the
    /// container is resumed.
    ///
    /// # Errors
    /// The container is not in a phase in which a process can be started, or its VMM cannot be reached.
    pub(crate) fn connect(store: &Store, id: &ContainerId, ignore_paused: bool) -> Result<Self, ExecError> {
        let record = store.record(id)?;
        check(&record)?;
        let mut client = control(&store.dir(id)).map_err(|error| ExecError::Connect(error.into()))?;
        let timeout = start_timeout(&mut client, &record, ignore_paused)?;
        Ok(Self { client, container: id.clone(), timeout })
    }

    /// Starts a process. `signals` are read while this waits for the answer, and belong to the returned connection.
    ///
    /// # Errors
    /// The guest did not start the process in time, or a signal interrupted the wait.
    pub(crate) fn start(
        self,
        request: ExecRequest,
        stdio: &ProcessStdio,
        signals: Signals,
    ) -> Result<(Connection, ProcessId), ExecError> {
        let ExecRequest { name, process, cgroup } = request;
        let mut connection = Connection::new(self.client, Some(signals), None);
        let target = ProcessId { container: self.container.to_string(), exec: Some(name) };
        let program = process.args().iter().flatten().next().cloned().unwrap_or_default();
        let request = Request::Exec { process: target.clone(), spec: Box::new(process), stdio: stdio.kind, cgroup };
        let started = connection.call(&request, &stdio.fds(), "start the process", self.timeout);
        started.map_err(|error| ExecError::Start(error.for_program(&program)))?;
        Ok((connection, target))
    }
}

fn check(record: &Record) -> Result<(), ExecError> {
    match record.phase_now() {
        Phase::Created | Phase::Running | Phase::Paused => Ok(()),
        Phase::Creating => Err(ExecError::BeingCreated),
        Phase::Stopped => Err(ExecError::Stopped),
    }
}

/// Returns the time limit for the start of the process. In a paused container it starts when the container is resumed.
fn start_timeout(client: &mut Client, record: &Record, ignore_paused: bool) -> Result<Duration, ExecError> {
    match request_status(client, &record.id) {
        Ok(Status::Paused) if ignore_paused => Ok(PAUSED_TIMEOUT),
        Ok(Status::Paused) => Err(ExecError::Paused),
        Ok(Status::Stopped(_)) => Err(ExecError::Stopped),
        _ => Ok(EXEC_TIMEOUT),
    }
}
