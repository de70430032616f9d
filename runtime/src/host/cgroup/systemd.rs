//! Cgroups made by systemd: a container's VMM in a transient scope unit of its own, as `--systemd-cgroup` asks for.
//!
//! systemd makes the unit's cgroup and hands it over (`Delegate=`): the limits are then written there like in any other, and
//! told to systemd, too, which would otherwise set its own when it is reloaded.

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
use crate::spec::weights::cpu_weight;

/// There where systemd is the machine's init.
const RUNS: &str = "/run/systemd/system";

/// How long systemd may take to move a process.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where scopes are unless the specification says otherwise.
const DEFAULT_SLICE: &str = "system.slice";

/// What `CPUQuotaPerSecUSec` is rounded up to, in microseconds: systemd does not take less.
const QUOTA_UNIT: u64 = 10_000;

/// Why a VMM cannot be put into a scope.
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
    #[error("have systemd {step} {unit}")]
    Call { step: &'static str, unit: String, source: Box<zbus::Error> },
    #[error("systemd did not move process {pid} to {unit} within {} s", PATIENCE.as_secs())]
    NotMoved { pid: i32, unit: String },
}

/// A scope unit.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Scope {
    slice: String,
    unit: String,
}

type Properties<'v> = Vec<(&'static str, Value<'v>)>;

impl Scope {
    /// The one that `linux.cgroupsPath` names in its form for systemd, `slice:prefix:name`.
    pub(crate) fn named(cgroups_path: Option<&Path>, id: &ContainerId) -> Result<Self, SystemdError> {
        let text = cgroups_path.map(Path::to_string_lossy).unwrap_or_default();
        let parts: Vec<_> = text.split(':').collect();
        let (slice, prefix, name) = match parts[..] {
            [""] => ("", "vmrt", id.as_str()),
            [slice, prefix, name] if !name.is_empty() => (slice, prefix, name),
            _ => return Err(SystemdError::Path(text.into_owned())),
        };
        let slice = if slice.is_empty() { DEFAULT_SLICE } else { slice };
        expand(slice)?;
        let unit = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        Ok(Self { slice: slice.to_owned(), unit })
    }

    /// Its cgroup, from the root of each hierarchy.
    pub(crate) fn cgroup(&self) -> PathBuf {
        // The slice was expanded when this was made.
        expand(&self.slice).unwrap_or_default().join(&self.unit)
    }

    /// Starts it with a process in it.
    pub(crate) fn start(&self, pid: i32, limits: &Limits) -> Result<(), SystemdError> {
        if !Path::new(RUNS).is_dir() {
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
        let no_others: Vec<(&str, Properties)> = Vec::new();
        self.call::<OwnedObjectPath>("start", "StartTransientUnit", &(&self.unit, "replace", properties, no_others))?;
        self.await_process(pid)
    }

    /// Tells it other limits.
    pub(crate) fn set(&self, limits: &Limits) -> Result<(), SystemdError> {
        self.call("set limits of", "SetUnitProperties", &(&self.unit, true, limit_properties(limits)))
    }

    /// Stops it. One that is gone, as every scope is whose processes have ended, is stopped.
    pub(crate) fn stop(&self) -> Result<(), SystemdError> {
        let stopped = self.call::<OwnedObjectPath>("stop", "StopUnit", &(&self.unit, "replace"));
        // What failed would stay, and its name with it; what did not is no unit of that kind.
        let _ = self.call::<()>("forget", "ResetFailedUnit", &(&self.unit,));
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

    /// A scope is started by a job; it is done when the process is where it should be.
    fn await_process(&self, pid: i32) -> Result<(), SystemdError> {
        let end = Instant::now() + PATIENCE;
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

/// The limits as systemd calls them. The CPUs and memory nodes are not among them: those are written to the cgroup alone.
fn limit_properties(limits: &Limits) -> Properties<'static> {
    // Unlimited is the largest number.
    let quota = limits
        .cpu_quota
        .map_or(u64::MAX, |(quota, period)| (quota * 1_000_000).div_ceil(period).next_multiple_of(QUOTA_UNIT));
    let mut properties: Properties = vec![
        ("MemoryMax", limits.memory.into()),
        ("TasksMax", limits.pids.into()),
        ("CPUQuotaPerSecUSec", quota.into()),
    ];
    properties.extend(limits.cpu_shares.map(|shares| ("CPUWeight", cpu_weight(shares).into())));
    properties
}

/// Where a slice is: `a-b.slice` in `a.slice`.
fn expand(slice: &str) -> Result<PathBuf, SystemdError> {
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

    fn named(path: &str) -> Result<Scope, String> {
        Scope::named(Some(Path::new(path)), &"web".parse().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_path_names_a_slice_and_a_scope() {
        let cgroup = |path: &str| named(path).unwrap().cgroup();
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
    fn what_names_none_is_refused() {
        for path in ["/a/b", "a:b", "a:b:c:d", "system.slice:p:"] {
            assert!(named(path).unwrap_err().contains("slice:prefix:name"), "{path}");
        }
        for path in ["system:p:x", "a--b.slice:p:x", "a/b.slice:p:x", ".slice:p:x"] {
            assert!(named(path).unwrap_err().contains("not the name of a slice"), "{path}");
        }
    }

    #[test]
    fn limits_are_told_in_systemds_units() {
        let limits = Limits {
            memory: 1 << 30,
            pids: 65,
            cpu_quota: Some((62_500, 100_000)),
            cpu_shares: Some(1024),
            cpu_idle: None,
            cpus: None,
            mems: None,
            block_io: BlockIo::default(),
        };
        let expected = [("MemoryMax", 1 << 30), ("TasksMax", 65), ("CPUQuotaPerSecUSec", 630_000), ("CPUWeight", 39)];
        let expected: Properties = expected.map(|(name, value): (_, u64)| (name, value.into())).to_vec();
        assert_eq!(limit_properties(&limits), expected);
        let free = Limits { cpu_quota: None, cpu_shares: None, ..limits };
        assert_eq!(limit_properties(&free)[2], ("CPUQuotaPerSecUSec", u64::MAX.into()));
    }
}
