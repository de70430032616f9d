//! The host's side of a container's limits: the cgroup its VMM runs in.
//!
//! On a pure cgroup v2 host that is one directory; on hybrid and v1 hosts one in the hierarchy of each controller.
//! The limits are those of the container and what its machine needs besides ([`crate::limits`]).

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::id::ContainerId;
use crate::limits::Limits;

const MOUNT: &str = "/sys/fs/cgroup";

/// Controllers that limits are set with.
const CONTROLLERS: [&str; 4] = ["memory", "cpu", "pids", "cpuset"];

/// How long the kernel may take to let go of a cgroup whose last process has ended, and a VMM to end whose `create` was
/// killed.
const REMOVE_PATIENCE: Duration = Duration::from_secs(10);

/// Why a VMM cannot be put into a cgroup.
#[derive(Debug, Error)]
pub(crate) enum CgroupError {
    #[error("no cgroup hierarchy is mounted below {MOUNT}")]
    NotMounted,
    #[error("cgroup path `{}` names no cgroup below the root", .0.display())]
    Path(PathBuf),
    #[error("{step} {}", path.display())]
    Io { step: &'static str, path: PathBuf, source: io::Error },
}

fn io_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError + use<> {
    let path = path.to_owned();
    move |source| CgroupError::Io { step, path, source }
}

/// The directories of one container's cgroup, one for each hierarchy.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub(crate) struct Cgroup {
    dirs: Vec<PathBuf>,
}

/// Which kind of hierarchy a directory belongs to: the names of its files differ.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Version {
    V1(&'static str),
    V2,
}

impl Cgroup {
    /// Where a container's cgroup is unless its specification says otherwise.
    pub(crate) fn default_path(id: &ContainerId) -> PathBuf {
        Path::new("/").join(format!("vmrt-{id}"))
    }

    /// Where the cgroup `path`, from the root of each hierarchy, is or will be.
    pub(crate) fn plan(path: &Path) -> Result<Self, CgroupError> {
        Self::plan_below(Path::new(MOUNT), path)
    }

    fn plan_below(mount: &Path, path: &Path) -> Result<Self, CgroupError> {
        let relative = relative(path)?;
        Ok(Self { dirs: hierarchies(mount)?.into_iter().map(|(_, root)| root.join(relative)).collect() })
    }

    /// Makes the cgroup `path`, which was planned, and sets its limits. On failure a part of it may be left.
    pub(crate) fn create(path: &Path, limits: &Limits) -> Result<(), CgroupError> {
        let relative = relative(path)?;
        for (version, root) in hierarchies(Path::new(MOUNT))? {
            make_dirs(version, &root, relative)?;
            let dir = root.join(relative);
            match version {
                Version::V2 => set_v2(&dir, limits)?,
                Version::V1(controller) => set_v1(controller, &dir, limits)?,
            }
        }
        Ok(())
    }

    /// Sets the limits of an existing one anew.
    pub(crate) fn update(&self, limits: &Limits) -> Result<(), CgroupError> {
        for dir in &self.dirs {
            match version_of(dir) {
                Version::V2 => {
                    set_v2(dir, limits)?;
                    if limits.cpu_quota.is_none() {
                        write(&dir.join("cpu.max"), "max")?;
                    }
                }
                Version::V1(controller) => {
                    set_v1(controller, dir, limits)?;
                    if limits.cpu_quota.is_none() && controller == "cpu" {
                        write(&dir.join("cpu.cfs_quota_us"), "-1")?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Moves a process with all its threads in.
    pub(crate) fn add(&self, pid: i32) -> Result<(), CgroupError> {
        self.dirs.iter().try_for_each(|dir| write(&dir.join("cgroup.procs"), &pid.to_string()))
    }

    /// Removes it. A process left inside keeps its cgroup, which is then told.
    pub(crate) fn remove(&self) -> Vec<CgroupError> {
        let end = Instant::now() + REMOVE_PATIENCE;
        self.dirs.iter().filter_map(|dir| remove_dir(dir, end).map_err(io_error("remove", dir)).err()).collect()
    }
}

/// Which hierarchy a container's directory is in. Those of version 1 are named after their controllers.
fn version_of(dir: &Path) -> Version {
    let below = dir.strip_prefix(MOUNT).ok().and_then(|path| path.components().next());
    let is_v1 = |name: &&str| {
        statfs(dir).is_ok_and(|fs| fs.filesystem_type() == CGROUP_SUPER_MAGIC)
            && below == Some(Component::Normal((*name).as_ref()))
    };
    CONTROLLERS.into_iter().find(is_v1).map_or(Version::V2, Version::V1)
}

/// The path without its first slash; it has to lead down.
fn relative(path: &Path) -> Result<&Path, CgroupError> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let mut parts = relative.components().peekable();
    let down = parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)));
    if down { Ok(relative) } else { Err(CgroupError::Path(path.into())) }
}

fn remove_dir(dir: &Path, end: Instant) -> io::Result<()> {
    loop {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < end => {
                thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

/// The hierarchies that are mounted: the one of v2, or those of v1 that have a controller of interest.
fn hierarchies(mount: &Path) -> Result<Vec<(Version, PathBuf)>, CgroupError> {
    if statfs(mount).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC) {
        return Ok(vec![(Version::V2, mount.into())]);
    }
    let found = CONTROLLERS.into_iter().map(|name| (Version::V1(name), mount.join(name)));
    let found = found.filter(|(_, dir)| statfs(dir).is_ok_and(|fs| fs.filesystem_type() == CGROUP_SUPER_MAGIC));
    let found: Vec<_> = found.collect();
    if found.is_empty() { Err(CgroupError::NotMounted) } else { Ok(found) }
}

/// Which hierarchies this host has, for people.
pub(crate) fn describe() -> String {
    match hierarchies(Path::new(MOUNT)) {
        Err(error) => error.to_string(),
        Ok(found) if found.iter().any(|(version, _)| *version == Version::V2) => "v2".into(),
        Ok(found) => {
            let names = found.iter().filter_map(|(_, dir)| dir.file_name()?.to_str());
            format!("v1 or hybrid, with {}", names.collect::<Vec<_>>().join(", "))
        }
    }
}

/// Makes every directory down to `path`, with what it takes for the last one to have its controllers.
fn make_dirs(version: Version, root: &Path, path: &Path) -> Result<(), CgroupError> {
    let mut dir = root.to_owned();
    for part in path.components() {
        if version == Version::V2 {
            delegate(&dir);
        }
        let parent = dir.clone();
        dir.push(part);
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result.map_err(io_error("create", &dir))?,
        }
        if version == Version::V1("cpuset") {
            inherit_cpuset(&parent, &dir)?;
        }
    }
    Ok(())
}

/// Hands every controller there is down to the children. One that is not there is missed, if it is, when its limit is
/// written, which names the file.
fn delegate(dir: &Path) {
    for controller in CONTROLLERS {
        let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// A new v1 cpuset has neither CPUs nor memory nodes and takes no process until it does.
fn inherit_cpuset(parent: &Path, dir: &Path) -> Result<(), CgroupError> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(name), dir.join(name));
        let own = fs::read_to_string(&to).map_err(io_error("read", &to))?;
        if own.trim().is_empty() {
            let value = fs::read_to_string(&from).map_err(io_error("read", &from))?;
            write(&to, value.trim())?;
        }
    }
    Ok(())
}

fn set_v2(dir: &Path, limits: &Limits) -> Result<(), CgroupError> {
    write(&dir.join("memory.max"), &limits.memory.to_string())?;
    write(&dir.join("pids.max"), &limits.pids.to_string())?;
    if let Some((quota, period)) = limits.cpu_quota {
        write(&dir.join("cpu.max"), &format!("{quota} {period}"))?;
    }
    if let Some(shares) = limits.cpu_shares {
        write(&dir.join("cpu.weight"), &weight(shares).to_string())?;
    }
    set_cpuset(dir, limits)
}

fn set_v1(controller: &str, dir: &Path, limits: &Limits) -> Result<(), CgroupError> {
    match controller {
        "memory" => write(&dir.join("memory.limit_in_bytes"), &limits.memory.to_string()),
        "pids" => write(&dir.join("pids.max"), &limits.pids.to_string()),
        "cpu" => set_v1_cpu(dir, limits),
        _ => set_cpuset(dir, limits),
    }
}

fn set_v1_cpu(dir: &Path, limits: &Limits) -> Result<(), CgroupError> {
    if let Some(shares) = limits.cpu_shares {
        write(&dir.join("cpu.shares"), &shares.to_string())?;
    }
    if let Some((quota, period)) = limits.cpu_quota {
        write(&dir.join("cpu.cfs_period_us"), &period.to_string())?;
        write(&dir.join("cpu.cfs_quota_us"), &quota.to_string())?;
    }
    Ok(())
}

fn set_cpuset(dir: &Path, limits: &Limits) -> Result<(), CgroupError> {
    if let Some(cpus) = &limits.cpus {
        write(&dir.join("cpuset.cpus"), cpus)?;
    }
    if let Some(mems) = &limits.mems {
        write(&dir.join("cpuset.mems"), mems)?;
    }
    Ok(())
}

/// v1's shares (2 to 262144) as v2's weight (1 to 10000), by the conversion every OCI runtime uses.
pub(crate) fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    // Not created where the controller is absent: that has to be an error.
    let file = fs::OpenOptions::new().write(true).open(path);
    let written = file.and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
    written.map_err(io_error("set", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { memory: 1 << 30, pids: 64, cpu_quota: None, cpu_shares: Some(1024), cpus: None, mems: None }
    }

    #[test]
    fn shares_become_weights_as_elsewhere() {
        assert_eq!(weight(0), 1);
        assert_eq!(weight(2), 1);
        assert_eq!(weight(1024), 39);
        assert_eq!(weight(262_144), 10_000);
    }

    #[test]
    fn v2_files_get_the_limits() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["memory.max", "pids.max", "cpu.max", "cpu.weight"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        set_v2(dir.path(), &Limits { cpu_quota: Some((50_000, 100_000)), ..limits() }).unwrap();
        let read = |name| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("memory.max"), "1073741824");
        assert_eq!(read("cpu.max"), "50000 100000");
        assert_eq!(read("cpu.weight"), "39");
    }

    #[test]
    fn a_missing_controller_is_an_error_that_names_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = set_v2(dir.path(), &limits()).unwrap_err();
        assert_eq!(error.to_string(), format!("set {}", dir.path().join("memory.max").display()));
    }

    #[test]
    fn paths_lead_down_and_a_directory_is_no_hierarchy() {
        let dir = tempfile::tempdir().unwrap();
        let plan = |path: &str| Cgroup::plan_below(dir.path(), Path::new(path));
        for path in ["/../x", "/x/../y", "/", "", ".."] {
            assert!(matches!(plan(path), Err(CgroupError::Path(_))), "{path}");
        }
        assert!(matches!(plan("/x"), Err(CgroupError::NotMounted)));
    }

    #[test]
    fn what_was_planned_and_not_made_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("made");
        fs::create_dir(&made).unwrap();
        let cgroup = Cgroup { dirs: vec![dir.path().join("never"), made.clone()] };
        assert!(cgroup.remove().is_empty() && !made.exists());
    }
}
