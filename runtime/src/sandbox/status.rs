//! The phase of a container as it is now, which only its VMM knows exactly.

use std::path::Path;
use std::time::Duration;

use vmm::control::{Client, Reply, Request, Status};

use super::connection::RequestError;
use super::control_socket::control;
use super::record::{Phase, Record};

/// How long a VMM may take to report its container's state.
const STATUS_DEADLINE: Duration = Duration::from_secs(1);

/// How long a VMM that takes no requests any more may take to end.
pub(crate) const ENDING_PATIENCE: Duration = Duration::from_secs(1);

/// The phase as it is now. Only the VMM knows whether its container is paused, and it knows better where a `start` was
/// killed before it recorded that the container is started. A VMM that does not answer changes nothing.
pub(crate) fn status(record: &Record, dir: &Path) -> Phase {
    status_and_end(record, dir).0
}

/// The same, and the exit status where the program has ended and the VMM, which has not, reports it.
pub(crate) fn status_and_end(record: &Record, dir: &Path) -> (Phase, Option<u8>) {
    let phase = record.phase_now();
    if !matches!(phase, Phase::Created | Phase::Running) {
        return (phase, None);
    }
    let status = control(dir).map_err(RequestError::from).and_then(|mut client| ask_status(&mut client, &record.id));
    match status {
        Ok(Status::Stopped(end)) => (Phase::Stopped, Some(end.code())),
        Ok(Status::Paused) => (Phase::Paused, None),
        Ok(Status::Running) => (Phase::Running, None),
        Err(error) if error.is_end() => {
            // Its sockets are closed shortly before its process has ended.
            record.vmm.wait(ENDING_PATIENCE);
            (record.phase_now(), None)
        }
        _ => (phase, None),
    }
}

/// What the VMM reports.
pub(crate) fn ask_status(client: &mut Client, id: &str) -> Result<Status, RequestError> {
    let request = Request::Status { container: id.to_owned() };
    match client.call(&request, &[], Some(STATUS_DEADLINE))? {
        Reply::Status(status) => Ok(status),
        _ => Err(RequestError::Confused),
    }
}
