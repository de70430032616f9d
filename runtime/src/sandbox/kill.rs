//! Sends a signal to the processes of a container.

use std::time::Duration;

use agent::{ContainerRequest, FailureKind, ProcessId};
use nix::libc::SIGKILL;
use thiserror::Error;
use vmm::control::Request;

use super::connection::RequestError;
use super::context::Context;
use super::control_socket::control;
use super::record::{Phase, Record};
use super::status::CLOSED_VMM_END_TIMEOUT;
use super::vmm_process::{self, VmmError};
use crate::base::container_id::ContainerId;

/// Time limit for a guest to deliver a signal. A guest that takes longer counts as hung.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(3);

/// Time to wait for the end of a container that was sent `SIGKILL`.
const KILLED_TIMEOUT: Duration = Duration::from_secs(2);

/// The reason why a signal was not sent. Where runc has a message for it, it is runc's.
#[derive(Debug, Error)]
pub(crate) enum KillError {
    #[error("container not running")]
    NotRunning,
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Vmm(#[from] VmmError),
}

impl KillError {
    /// The exit status of a command that fails with this error; `None` if it depends on the command.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Request(error) => error.exit_code(),
            Self::Vmm(error) => error.exit_code(),
            Self::NotRunning => None,
        }
    }
}

/// Sends a signal to the first process of a container, or with `all` to all of its processes. After `SIGKILL` it waits for the end of
/// the container for a short time. If the guest does not deliver `SIGKILL`, the VMM is killed.
///
/// # Errors
/// The container is not running, unless `all` is set, or the signal was not delivered.
pub(crate) fn kill(
    context: &Context,
    id: &ContainerId,
    record: &Record,
    signal: i32,
    all: bool,
) -> Result<(), KillError> {
    if record.phase_now() == Phase::Stopped {
        return on_stopped(all);
    }
    match send(context, id, signal, all) {
        Ok(()) => Ok(()),
        Err(RequestError::Failure(failure)) if is_stopped(failure.kind) => on_stopped(all),
        Err(error) if error.is_disconnect() && record.vmm.wait(CLOSED_VMM_END_TIMEOUT) => on_stopped(all),
        Err(error) if signal == SIGKILL => {
            context.log.warn(&format!("the guest does not deliver the signal, its VMM is killed: {error}"));
            Ok(vmm_process::kill(record.vmm)?)
        }
        Err(error) => Err(error.into()),
    }
}

/// Returns the result for a stopped container. As in runc, that is an error unless all processes were to be signaled.
fn on_stopped(all: bool) -> Result<(), KillError> {
    if all { Ok(()) } else { Err(KillError::NotRunning) }
}

/// Whether a failure means that the container has stopped.
fn is_stopped(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::NotFound | FailureKind::WrongState)
}

fn send(context: &Context, id: &ContainerId, signal: i32, all: bool) -> Result<(), RequestError> {
    let process = ProcessId { container: id.to_string(), exec: None };
    let mut client = control(&context.store.dir(id))?;
    client.call(
        &Request::Container(ContainerRequest::Signal { process: process.clone(), signal, all }),
        &[],
        Some(SIGNAL_TIMEOUT),
    )?;
    if signal == SIGKILL {
        // After `kill` the next command is to find the container stopped. The signal was delivered, so a failure is ignored.
        let _ = client.call(&Request::Wait { process }, &[], Some(KILLED_TIMEOUT));
    }
    Ok(())
}
