//! `vmrt state`

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use vmm::control::{Client, Reply, Request, Status};

use super::print_json;
use crate::cli::IdArgs;
use crate::connection::RequestError;
use crate::context::Context;
use crate::error::Error;
use crate::sandbox::{control, exit_status};
use crate::state::{OCI_VERSION, Phase, Record};

/// How long a VMM may take to say what state its container is in.
const STATUS_DEADLINE: Duration = Duration::from_secs(1);

/// How long a VMM that takes no requests any more may take to end.
pub(super) const ENDING_PATIENCE: Duration = Duration::from_secs(1);

/// A container's state with runc's fields, in runc's order, and how it ended.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State<'a> {
    oci_version: &'static str,
    pub(super) id: &'a str,
    pub(super) pid: i32,
    pub(super) status: Phase,
    pub(super) bundle: &'a Path,
    rootfs: &'a Path,
    pub(super) created: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'a str, &'a str>,
    pub(super) owner: String,
    /// Kept until the container is deleted, whether or not anybody waited for its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_status: Option<u8>,
}

impl<'a> State<'a> {
    /// `dir`: the container's directory.
    pub(super) fn of(record: &'a Record, dir: &Path, owner: String) -> Self {
        let (status, end) = status_and_end(record, dir);
        Self {
            oci_version: OCI_VERSION,
            id: &record.id,
            pid: if status == Phase::Stopped { 0 } else { record.vmm.pid },
            status,
            bundle: &record.bundle,
            rootfs: &record.rootfs,
            created: &record.created,
            annotations: record.annotations.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
            owner,
            exit_status: end.or_else(|| exit_status(dir).filter(|_| status == Phase::Stopped)),
        }
    }
}

pub(crate) fn run(context: &Context, args: &IdArgs) -> Result<u8, Error> {
    let id = args.id.parse()?;
    let record = context.store.record(&id)?;
    print_json(&State::of(&record, &context.store.dir(&id), String::new()), true)?;
    Ok(0)
}

/// The phase as it is now. Only the VMM knows whether its container is paused, and it knows better where a `start` was
/// killed before it had written that the container is started. A VMM that does not answer changes nothing.
pub(super) fn status(record: &Record, dir: &Path) -> Phase {
    status_and_end(record, dir).0
}

/// The same, and the exit status where the program has ended and the VMM, which has not, tells it.
fn status_and_end(record: &Record, dir: &Path) -> (Phase, Option<u8>) {
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

/// What the VMM says.
pub(super) fn ask_status(client: &mut Client, id: &str) -> Result<Status, RequestError> {
    let request = Request::Status { container: id.to_owned() };
    match client.call(&request, &[], Some(STATUS_DEADLINE))? {
        Reply::Status(status) => Ok(status),
        _ => Err(RequestError::Confused),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use agent::{ExitStatus, frame};
    use vmm::control::{Answer, Call};

    use super::*;
    use crate::host_process::{HostProcess, boot_id};
    use crate::sandbox::CONTROL_SOCKET;

    #[test]
    fn fields_are_runcs() {
        let record = serde_json::json!({
            "id": "web", "phase": "running", "vmm": {"pid": 7, "startTime": 1}, "bootId": "then", "bundle": "/b",
            "rootfs": "/b/rootfs", "created": "2026-11-20T19:38:16Z", "annotations": {"b": "2", "a": "1"}, "cgroup": [],
            "machine": {"memoryMib": 1, "vcpus": 1},
        });
        let record: Record = serde_json::from_value(record).unwrap();
        let text = serde_json::to_string(&State::of(&record, Path::new("/nonexistent"), String::new())).unwrap();
        let expected = concat!(
            r#"{"ociVersion":"1.0.2","id":"web","pid":0,"status":"stopped","bundle":"/b","rootfs":"/b/rootfs","#,
            r#""created":"2026-11-20T19:38:16Z","annotations":{"a":"1","b":"2"},"owner":""}"#
        );
        assert_eq!(text, expected);
    }
    #[test]
    fn a_program_that_ended_before_its_vmm_has_stopped_with_its_status() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(CONTROL_SOCKET)).unwrap();
        let vmm = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let call: Call = frame::read(&mut stream).unwrap().unwrap();
            let result = Ok(Reply::Status(Status::Stopped(ExitStatus::Signaled(9))));
            frame::write(&mut stream, &Answer { id: call.id, result }).unwrap();
        });
        let own = HostProcess::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        let record = serde_json::json!({
            "id": "web", "phase": "running", "vmm": own, "bootId": boot_id().unwrap(), "bundle": "/b", "rootfs": "/b",
            "created": "", "cgroup": [], "machine": {"memoryMib": 1, "vcpus": 1},
        });
        let record: Record = serde_json::from_value(record).unwrap();
        let state = State::of(&record, dir.path(), String::new());
        assert_eq!((state.status, state.pid, state.exit_status), (Phase::Stopped, 0, Some(137)));
        vmm.join().unwrap();
        assert_eq!(status(&record, dir.path()), Phase::Running, "a VMM that does not answer changes nothing");
    }
}
