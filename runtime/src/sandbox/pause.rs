//! Pauses a container and resumes it.

use std::time::Duration;

use agent::ContainerRequest;
use thiserror::Error;
use vmm::control::Request;

use super::connection::RequestError;
use super::control_socket::control;
use super::record::Phase;
use super::status::status;
use super::store::{StateError, Store};
use crate::base::container_id::ContainerId;

/// Time limit for the container's processes to freeze. A process that waits for I/O on a share freezes after it is done.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);

/// The reason why a container was not paused or resumed, in runc's words.
#[derive(Debug, Error)]
pub(crate) enum PauseError {
    #[error("container not running")]
    NotRunning,
    #[error("container not paused")]
    NotPaused,
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl PauseError {
    /// The exit status of a command that fails with this error; `None` if it depends on the command.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Request(error) => error.exit_code(),
            _ => None,
        }
    }
}

/// Freezes all processes of a container.
///
/// # Errors
/// The container is not running, or a process did not freeze. Then those that are frozen are resumed.
pub(crate) fn pause(store: &Store, id: &ContainerId) -> Result<(), PauseError> {
    match phase(store, id)? {
        Phase::Created | Phase::Running => {}
        _ => return Err(PauseError::NotRunning),
    }
    if let Err(error) = freeze(store, id, true) {
        // The caller gets the first failure; a failure to undo is ignored.
        let _ = freeze(store, id, false);
        return Err(error.into());
    }
    Ok(())
}

/// Resumes all processes of a paused container.
///
/// # Errors
/// The container is not paused, or the request failed.
pub(crate) fn resume(store: &Store, id: &ContainerId) -> Result<(), PauseError> {
    if phase(store, id)? != Phase::Paused {
        return Err(PauseError::NotPaused);
    }
    Ok(freeze(store, id, false)?)
}

fn phase(store: &Store, id: &ContainerId) -> Result<Phase, StateError> {
    let record = store.record(id)?;
    Ok(status(&record, &store.dir(id)))
}

fn freeze(store: &Store, id: &ContainerId, frozen: bool) -> Result<(), RequestError> {
    let mut client = control(&store.dir(id))?;
    client.call(
        &Request::Container(ContainerRequest::Freeze { container: id.to_string(), frozen }),
        &[],
        Some(FREEZE_TIMEOUT),
    )?;
    Ok(())
}
