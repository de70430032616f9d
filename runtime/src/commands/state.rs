//! `vmrt state`

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::output::print_json;
use crate::cli::IdArgs;
use crate::commands::error::Error;
use crate::sandbox::context::Context;
use crate::sandbox::record::{Phase, Record};
use crate::sandbox::status::status_and_end;
use crate::sandbox::vmm_process::{cause_of_end, exit_status};
use crate::spec::OCI_VERSION;

/// A container's state with runc's fields, in runc's order, and in addition its exit status or the cause of its VMM's end.
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
    /// The exit status of a stopped container. It is available until the container is deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_status: Option<u8>,
    /// Why the VMM of a stopped container has ended without an exit status of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl<'a> State<'a> {
    /// Makes the state from a container's record and its directory `dir`.
    pub(super) fn of(record: &'a Record, dir: &Path, owner: String) -> Self {
        let (status, end) = status_and_end(record, dir);
        let exit_status = end.or_else(|| exit_status(dir).filter(|_| status == Phase::Stopped));
        let has_failed = status == Phase::Stopped && exit_status.is_none() && record.has_vmm_of_this_boot();
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
            exit_status,
            error: has_failed.then(|| cause_of_end(dir)),
        }
    }
}

pub(crate) fn run(context: &Context, args: &IdArgs) -> Result<u8, Error> {
    let id = args.id.parse()?;
    let record = context.store.record(&id)?;
    print_json(&State::of(&record, &context.store.dir(&id), String::new()), true)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use agent::{ExitStatus, frame};
    use vmm::control::{Answer, Call, Reply, Status};

    use super::*;
    use crate::host::process::{HostProcess, boot_id};
    use crate::sandbox::control_socket::CONTROL_SOCKET;
    use crate::sandbox::status::status;

    #[test]
    fn the_fields_of_a_state_are_runcs() {
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
    fn a_vmm_that_ended_without_an_exit_status_has_a_cause() {
        let dir = tempfile::tempdir().unwrap();
        // No process has this pid.
        let record = serde_json::json!({
            "id": "web", "phase": "running", "vmm": {"pid": i32::MAX, "startTime": 1}, "bootId": boot_id().unwrap(), "bundle": "/b",
            "rootfs": "/b", "created": "", "cgroup": [], "machine": {"memoryMib": 1, "vcpus": 1},
        });
        let record: Record = serde_json::from_value(record).unwrap();
        let error = || State::of(&record, dir.path(), String::new()).error;
        std::fs::write(dir.path().join("vmm.log"), "then ERROR no memory\n").unwrap();
        assert_eq!(error().as_deref(), Some("vmrt-vmm ended unexpectedly: no memory"));
        std::fs::write(dir.path().join("exit"), "3").unwrap();
        assert_eq!(error(), None);
    }

    #[test]
    fn a_container_whose_program_has_ended_is_stopped_while_its_vmm_still_runs() {
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
