//! Starts the program of a container.

use std::time::Duration;

use agent::ContainerRequest;
use thiserror::Error;
use vmm::control::Request;

use super::connection::RequestError;
use super::control_socket::control;
use super::create::Container;
use super::error::SandboxError;
use super::interfaces::{self, InterfacesError};
use super::record::Phase;
use super::status::status;
use super::store::{StateError, Store};
use super::vmm_process::{VmmError, kill};
use crate::base::container_id::ContainerId;
use crate::host::hooks::{self, HookError};

/// Time limit for the guest to execute a program.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// The reason why a container was not started. Where runc has a message for it, it is runc's.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    #[error("cannot start an already running container")]
    AlreadyRunning,
    #[error("cannot start a container that has stopped")]
    HasStopped,
    #[error("cannot start a container in the paused state")]
    Paused,
    #[error("container is still being created")]
    BeingCreated,
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Interfaces(#[from] InterfacesError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Vmm(#[from] VmmError),
}

impl StartError {
    /// The exit status of a command that fails with this error; `None` if it depends on the command.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Request(error) => error.exit_code(),
            Self::Interfaces(error) => error.exit_code(),
            Self::Sandbox(error) => error.exit_code(),
            Self::Vmm(error) => error.exit_code(),
            _ => None,
        }
    }
}

/// Starts a container that an earlier command has created.
///
/// # Errors
/// The container is not in the phase `created`, or a step failed. If a poststart hook failed, the VMM is killed.
pub(crate) fn start(store: &Store, id: &ContainerId) -> Result<(), StartError> {
    let locked = store.lock(id)?;
    let mut record = store.record(id)?;
    check(status(&record, &locked.dir))?;
    let mut client = control(&locked.dir).map_err(RequestError::from)?;
    // Some engines create the interfaces between create and start.
    interfaces::update(&mut client, &locked, &mut record)?;
    let request = Request::Container(ContainerRequest::Start { container: record.id.clone() });
    client.call(&request, &[], Some(START_TIMEOUT)).map_err(RequestError::from)?;
    record.phase = Phase::Running;
    locked.write(&record)?;
    match hooks::run_poststart(record.hook_container()) {
        Ok(()) => Ok(()),
        Err(error) => {
            kill(record.vmm)?;
            Err(error.into())
        }
    }
}

/// Starts a container that this process has just created, over the connection that created it.
///
/// # Errors
/// The program cannot be executed, or a poststart hook failed. The caller drops the container, which undoes it.
pub(crate) fn start_created(container: &mut Container) -> Result<(), StartError> {
    let request = Request::Container(ContainerRequest::Start { container: container.id.to_string() });
    let result = container.connection.call(&request, &[], "start the container's program", START_TIMEOUT);
    result.map_err(|error| container.explain(error))?;
    container.record.phase = Phase::Running;
    container.locked().write(&container.record)?;
    Ok(hooks::run_poststart(container.record.hook_container())?)
}

fn check(phase: Phase) -> Result<(), StartError> {
    match phase {
        Phase::Created => Ok(()),
        Phase::Creating => Err(StartError::BeingCreated),
        Phase::Running => Err(StartError::AlreadyRunning),
        Phase::Paused => Err(StartError::Paused),
        Phase::Stopped => Err(StartError::HasStopped),
    }
}
