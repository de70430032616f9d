//! The current phase of a container, which only its VMM knows exactly.

use std::path::Path;
use std::time::Duration;

use vmm::control::{Client, Reply, Request, Status};

use super::connection::RequestError;
use super::control_socket::control;
use super::record::{Phase, Record};

/// Time limit for a VMM to report its container's state.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// Time limit for a VMM that has closed its control socket to end.
pub(crate) const CLOSED_VMM_END_TIMEOUT: Duration = Duration::from_secs(1);

/// Returns the current phase. Only the VMM knows whether its container is paused, or was started by a `start` that was killed before
/// it recorded that. If the VMM does not answer, the recorded phase is returned.
pub(crate) fn status(record: &Record, dir: &Path) -> Phase {
    status_and_end(record, dir).0
}

/// Returns the current phase, and the exit status if the program has ended and the VMM, which still runs, reports it.
pub(crate) fn status_and_end(record: &Record, dir: &Path) -> (Phase, Option<u8>) {
    let phase = record.phase_now();
    if !matches!(phase, Phase::Created | Phase::Running) {
        return (phase, None);
    }
    let status =
        control(dir).map_err(RequestError::from).and_then(|mut client| request_status(&mut client, &record.id));
    match status {
        Ok(Status::Stopped(end)) => (Phase::Stopped, Some(end.code())),
        Ok(Status::Paused) => (Phase::Paused, None),
        Ok(Status::Running) => (Phase::Running, None),
        Err(error) if error.is_disconnect() => {
            // The VMM closes its sockets shortly before its process ends.
            record.vmm.wait(CLOSED_VMM_END_TIMEOUT);
            (record.phase_now(), None)
        }
        _ => (phase, None),
    }
}

/// Requests the container's status from its VMM.
pub(crate) fn request_status(client: &mut Client, id: &str) -> Result<Status, RequestError> {
    let request = Request::Status { container: id.to_owned() };
    match client.call(&request, &[], Some(STATUS_TIMEOUT))? {
        Reply::Status(status) => Ok(status),
        _ => Err(RequestError::UnexpectedReply),
    }
}
