//! Cgroups created by systemd (`--systemd-cgroup`): each VMM runs in a transient scope unit of its own.
//!
//! systemd creates the unit's cgroup and delegates it (`Delegate=`). vmrt writes the limits to the cgroup as usual, and also sets them
//! as properties of the unit: otherwise systemd would overwrite them when it is reloaded.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use zbus::blocking::{Connection, Proxy};
use zbus::zvariant::{OwnedObjectPath, Value};

use crate::base::container_id::ContainerId;
use crate::spec::limits::Limits;

/// This directory exists if systemd is the host's init, sd_booted(3).
const SYSTEMD_DIR: &str = "/run/systemd/system";

/// Time limit for systemd to move a process into a scope.
const MOVE_TIMEOUT: Duration = Duration::from_secs(30);

/// The slice of scopes if the specification names none.
const DEFAULT_SLICE: &str = "system.slice";

/// Granularity of `CPUQuotaPerSecUSec` in systemd, in microseconds. Quotas are rounded up to it.
const QUOTA_UNIT: u64 = 10_000;

/// The reason why a VMM cannot be put into a scope.
#[derive(Debug, Error)]
pub(crate) enum SystemdError {
    #[error("--systemd-cgroup: systemd does not run on this host")]
    Absent,
    #[error("--systemd-cgroup expects linux.cgroupsPath to be `slice:prefix:name`, got `{0}`")]
    Path(String),
    #[error("--systemd-cgroup: `{0}` is not the name of a slice")]
    Slice(String),
    #[error("connect to systemd over the system's message bus")]
    Connect(#[source] Box<zbus::Error>),
    #[error("ask systemd to {step} {unit}")]
    Call { step: &'static str, unit: String, source: Box<zbus::Error> },
    #[error("systemd did not move process {pid} to {unit} within {} s", MOVE_TIMEOUT.as_secs())]
    NotMoved { pid: i32, unit: String },
}

/// A transient scope unit, systemd.scope(5).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Scope {
    slice: String,
    unit: String,
}

type Properties<'v> = Vec<(&'static str, Value<'v>)>;

impl Scope {
    /// Parses `linux.cgroupsPath` in its form for systemd, `slice:prefix:name`.
    pub(crate) fn parse(cgroups_path: Option<&Path>, id: &ContainerId) -> Result<Self, SystemdError> {
        let text = cgroups_path.map(Path::to_string_lossy).unwrap_or_default();
        let parts: Vec<_> = text.split(':').collect();
        let (slice, prefix, name) = match parts[..] {
            [""] => ("", "vmrt", id.as_str()),
            [slice, prefix, name] if !name.is_empty() => (slice, prefix, name),
            _ => return Err(SystemdError::Path(text.into_owned())),
        };
        let slice = if slice.is_empty() { DEFAULT_SLICE } else { slice };
        slice_path(slice)?;
        let unit = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        Ok(Self { slice: slice.to_owned(), unit })
    }

    /// Returns the path of the scope's cgroup from the root of each hierarchy.
    pub(crate) fn cgroup(&self) -> PathBuf {
        // `parse` has checked the slice.
        slice_path(&self.slice).unwrap_or_default().join(&self.unit)
    }

    /// Starts the scope with the process `pid` in it, and waits until systemd has moved the process.
    pub(crate) fn start(&self, pid: i32, limits: &Limits) -> Result<(), SystemdError> {
        if !Path::new(SYSTEMD_DIR).is_dir() {
            return Err(SystemdError::Absent);
        }
        let mut properties: Properties = vec![
            ("Description", format!("vmrt container {}", self.unit.trim_end_matches(".scope")).into()),
            ("Slice", self.slice.as_str().into()),
            ("Delegate", true.into()),
            ("DefaultDependencies", false.into()),
            ("PIDs", Value::from(vec![pid.unsigned_abs()])),
            ("MemoryAccounting", true.into()),
            ("CPUAccounting", true.into()),
            ("TasksAccounting", true.into()),
        ];
        properties.extend(limit_properties(limits));
        let auxiliary_units: Vec<(&str, Properties)> = Vec::new();
        let arguments = (&self.unit, "replace", properties, auxiliary_units);
        self.call::<OwnedObjectPath>("start", "StartTransientUnit", &arguments)?;
        self.wait_for_process(pid)
    }

    /// Sets new limits as properties of the unit.
    pub(crate) fn set(&self, limits: &Limits) -> Result<(), SystemdError> {
        self.call("set the limits of", "SetUnitProperties", &(&self.unit, true, limit_properties(limits)))
    }

    /// Stops the scope. A scope that does not exist any more, as after the end of its processes, is no error.
    pub(crate) fn stop(&self) -> Result<(), SystemdError> {
        let stopped = self.call::<OwnedObjectPath>("stop", "StopUnit", &(&self.unit, "replace"));
        // A failed unit would stay loaded and block its name. For a unit that has not failed this call fails.
        let _ = self.call::<()>("reset", "ResetFailedUnit", &(&self.unit,));
        match stopped {
            Err(SystemdError::Call { source, .. }) if is_no_such_unit(&source) => Ok(()),
            result => result.map(drop),
        }
    }

    fn call<R>(
        &self,
        step: &'static str,
        method: &'static str,
        arguments: &(impl Serialize + zbus::zvariant::DynamicType),
    ) -> Result<R, SystemdError>
    where
        R: for<'d> zbus::zvariant::DynamicDeserialize<'d>,
    {
        const SYSTEMD: &str = "org.freedesktop.systemd1";
        let connection = Connection::system().map_err(|error| SystemdError::Connect(error.into()))?;
        let manager = Proxy::new(&connection, SYSTEMD, "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager");
        let result = manager.and_then(|manager| manager.call(method, arguments));
        result.map_err(|error| SystemdError::Call { step, unit: self.unit.clone(), source: error.into() })
    }

    /// Waits until the process is in the scope's cgroup: systemd starts the scope with an asynchronous job.
    fn wait_for_process(&self, pid: i32) -> Result<(), SystemdError> {
        let end = Instant::now() + MOVE_TIMEOUT;
        let suffix = format!("/{}", self.unit);
        loop {
            let memberships = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            if memberships.lines().any(|line| line.ends_with(&suffix)) {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(SystemdError::NotMoved { pid, unit: self.unit.clone() });
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn is_no_such_unit(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::MethodError(name, ..) if name.as_str() == "org.freedesktop.systemd1.NoSuchUnit")
}

/// Converts limits to systemd's properties. CPUs and memory nodes are not included: they are written to the cgroup only.
fn limit_properties(limits: &Limits) -> Properties<'static> {
    // systemd represents "no limit" as the largest number, and ignores the limit of swap where there is no swap accounting.
    let quota = limits
        .cpu_quota
        .map_or(u64::MAX, |(quota, period)| (quota * 1_000_000).div_ceil(period).next_multiple_of(QUOTA_UNIT));
    let mut properties: Properties = vec![
        ("MemoryMax", limits.memory.into()),
        ("MemorySwapMax", limits.swap.unwrap_or(u64::MAX).into()),
        ("TasksMax", limits.pids.into()),
        ("CPUQuotaPerSecUSec", quota.into()),
    ];
    properties.extend(limits.cpu_shares.map(|shares| ("CPUWeight", agent::cpu_weight(shares).into())));
    properties
}

/// Returns the path of a slice: `a-b.slice` is in `a.slice`, systemd.slice(5).
fn slice_path(slice: &str) -> Result<PathBuf, SystemdError> {
    let invalid = || SystemdError::Slice(slice.to_owned());
    let name = slice.strip_suffix(".slice").filter(|name| !name.contains('/')).ok_or_else(invalid)?;
    let mut path = PathBuf::from("/");
    if name == "-" {
        return Ok(path);
    }
    let mut whole = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return Err(invalid());
        }
        whole = if whole.is_empty() { part.to_owned() } else { format!("{whole}-{part}") };
        path.push(format!("{whole}.slice"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::block_io::BlockIo;

    fn parsed(path: &str) -> Result<Scope, String> {
        Scope::parse(Some(Path::new(path)), &"web".parse().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_path_names_a_slice_and_a_scope() {
        let cgroup = |path: &str| parsed(path).unwrap().cgroup();
        assert_eq!(cgroup("system.slice:docker:1a2b"), Path::new("/system.slice/docker-1a2b.scope"));
        assert_eq!(
            cgroup("machine-a-b.slice::x"),
            Path::new("/machine.slice/machine-a.slice/machine-a-b.slice/x.scope")
        );
        assert_eq!(cgroup("-.slice:p:x"), Path::new("/p-x.scope"));
        assert_eq!(cgroup(":p:x"), Path::new("/system.slice/p-x.scope"));
        assert_eq!(cgroup(""), Path::new("/system.slice/vmrt-web.scope"));
    }

    #[test]
    fn a_path_in_another_form_is_refused() {
        for path in ["/a/b", "a:b", "a:b:c:d", "system.slice:p:"] {
            assert!(parsed(path).unwrap_err().contains("slice:prefix:name"), "{path}");
        }
        for path in ["system:p:x", "a--b.slice:p:x", "a/b.slice:p:x", ".slice:p:x"] {
            assert!(parsed(path).unwrap_err().contains("not the name of a slice"), "{path}");
        }
    }

    #[test]
    fn limits_become_systemd_properties() {
        let limits = Limits {
            memory: 1 << 30,
            swap: Some(1 << 20),
            pids: 65,
            cpu_quota: Some((62_500, 100_000)),
            cpu_shares: Some(1024),
            cpu_idle: None,
            cpus: None,
            mems: None,
            block_io: BlockIo::default(),
        };
        let memory = [("MemoryMax", 1 << 30), ("MemorySwapMax", 1 << 20)];
        let expected = [memory, [("TasksMax", 65), ("CPUQuotaPerSecUSec", 630_000)]].concat();
        let expected: Vec<_> = expected.into_iter().chain([("CPUWeight", 39)]).collect();
        let expected: Properties = expected.into_iter().map(|(name, value): (_, u64)| (name, value.into())).collect();
        assert_eq!(limit_properties(&limits), expected);
        let unlimited = Limits { swap: None, cpu_quota: None, cpu_shares: None, ..limits };
        assert_eq!(limit_properties(&unlimited)[1], ("MemorySwapMax", u64::MAX.into()));
        assert_eq!(limit_properties(&unlimited)[3], ("CPUQuotaPerSecUSec", u64::MAX.into()));
    }
}
