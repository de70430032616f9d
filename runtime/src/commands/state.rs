//! `vmrt state`

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use vmm::control::{Client, Reply, Request, Status};

use super::print_json;
use crate::cli::IdArgs;
use crate::context::Context;
use crate::error::Error;
use crate::sandbox::{control, exit_status};
use crate::state::{OCI_VERSION, Phase, Record};

/// How long a VMM may take to say what state its container is in.
const STATUS_DEADLINE: Duration = Duration::from_secs(1);

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
        let status = status(record, dir);
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
            exit_status: exit_status(dir).filter(|_| status == Phase::Stopped),
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
    let phase = record.phase_now();
    if !matches!(phase, Phase::Created | Phase::Running) {
        return phase;
    }
    let status = control(dir).ok().and_then(|mut client| ask_status(&mut client, &record.id));
    match (phase, status) {
        (_, Some(Status::Paused)) => Phase::Paused,
        (Phase::Created, Some(Status::Running | Status::Stopped(_))) => Phase::Running,
        _ => phase,
    }
}

/// What the VMM says.
pub(super) fn ask_status(client: &mut Client, id: &str) -> Option<Status> {
    let request = Request::Status { container: id.to_owned() };
    match client.call(&request, &[], Some(STATUS_DEADLINE)) {
        Ok(Reply::Status(status)) => Some(status),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
