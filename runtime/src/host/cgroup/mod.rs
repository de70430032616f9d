//! The cgroup on the host that a container's VMM runs in, and its limits.
//!
//! On a pure cgroup v2 host the cgroup is one directory. On hybrid and v1 hosts it has one directory in the hierarchy of each
//! controller. Its limits are those of the container and what its machine needs in addition ([`crate::spec::limits`]).

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::base::container_id::ContainerId;
use crate::spec::limits::Limits;

pub(crate) mod placement;
pub(crate) mod systemd;

const MOUNT: &str = "/sys/fs/cgroup";

/// Controllers of the limits. The controller of block I/O is `io` in version 2 and `blkio` in version 1.
const CONTROLLERS: [&str; 6] = ["memory", "cpu", "pids", "cpuset", "io", "blkio"];

/// Time limit for the removal of a cgroup. The kernel reports it as busy for a while after its last process has ended, and the VMM
/// of a killed `create` needs time to end.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The reason why a VMM has no cgroup.
#[derive(Debug, Error)]
pub(crate) enum CgroupError {
    #[error("no cgroup hierarchy is mounted below {MOUNT}")]
    NotMounted,
    #[error("cgroup path `{}` names no cgroup below the root", .0.display())]
    Path(PathBuf),
    #[error("container's cgroup is not empty: {0} process(es) found")]
    NotEmpty(usize),
    #[error("container's cgroup unexpectedly frozen")]
    Frozen,
    #[error("--cgroup-manager is disabled")]
    Disabled,
    #[error("the container was created without one")]
    NotCreated,
    #[error("{step} {}", path.display())]
    Io { step: &'static str, path: PathBuf, source: io::Error },
}

impl CgroupError {
    /// Whether the caller may not create a cgroup there: a permission or a controller is missing.
    pub(crate) fn is_refusal(&self) -> bool {
        use io::ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem};
        match self {
            Self::NotMounted | Self::Disabled => true,
            Self::Io { source, .. } => matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem | NotFound),
            _ => false,
        }
    }
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

/// The version of a hierarchy, with the controller in version 1. The names of the files depend on it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Version {
    V1(&'static str),
    V2,
}

impl Cgroup {
    /// Returns the path of a container's cgroup if its specification gives none. The prefix distinguishes it from the cgroup of
    /// another runtime's container with the same id.
    pub(crate) fn default_path(id: &ContainerId) -> PathBuf {
        Path::new("/").join(format!("vmrt-{id}"))
    }

    /// Returns the path for a caller that may not create the default one: below the parent of the caller's own cgroup, which may be
    /// delegated to the caller. (The caller's own cgroup has processes, so that it cannot enable controllers for its children.)
    pub(crate) fn sibling_path(id: &ContainerId) -> PathBuf {
        let memberships = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        sibling(&memberships, &Self::default_path(id))
    }

    /// Whether the VMM has no cgroup of its own.
    pub(crate) fn is_none(&self) -> bool {
        self.dirs.is_empty()
    }

    /// Returns the directories of the cgroup `path`, relative to the root of each hierarchy, whether or not they exist.
    ///
    /// # Errors
    /// The path does not lead down from the root, or no hierarchy is mounted.
    pub(crate) fn plan(path: &Path) -> Result<Self, CgroupError> {
        Self::plan_below(Path::new(MOUNT), path)
    }

    fn plan_below(mount: &Path, path: &Path) -> Result<Self, CgroupError> {
        let relative = relative(path)?;
        Ok(Self { dirs: hierarchies(mount)?.into_iter().map(|(_, root)| root.join(relative)).collect() })
    }

    /// Returns the cgroup if it is unused.
    ///
    /// # Errors
    /// It contains processes or is frozen.
    pub(crate) fn check_unused(self) -> Result<Self, CgroupError> {
        for dir in &self.dirs {
            let processes = count_processes(dir)?;
            if processes > 0 {
                return Err(CgroupError::NotEmpty(processes));
            }
            if is_frozen(dir) {
                return Err(CgroupError::Frozen);
            }
        }
        Ok(self)
    }

    /// Creates the cgroup `path` and sets its limits.
    ///
    /// # Errors
    /// A directory cannot be created or a limit cannot be set. Directories that were created are left.
    pub(crate) fn create(path: &Path, limits: &Limits) -> Result<(), CgroupError> {
        let relative = relative(path)?;
        for (version, root) in hierarchies(Path::new(MOUNT))? {
            create_dirs(version, &root, relative)?;
            let dir = root.join(relative);
            match version {
                Version::V2 => set_v2(&dir, limits)?,
                Version::V1(controller) => set_v1(controller, &dir, limits)?,
            }
        }
        Ok(())
    }

    /// Sets new limits for an existing cgroup.
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

    /// Moves a process with all its threads into the cgroup.
    pub(crate) fn add(&self, pid: i32) -> Result<(), CgroupError> {
        self.dirs.iter().try_for_each(|dir| write(&dir.join("cgroup.procs"), &pid.to_string()))
    }

    /// Removes the cgroup. Once the VMM has ended, the sandbox's helper and the commands that it runs end, too. Returns an error for each
    /// directory that is left.
    pub(crate) fn remove(&self) -> Vec<CgroupError> {
        let end = Instant::now() + REMOVE_TIMEOUT;
        self.dirs.iter().filter_map(|dir| remove_dir(dir, end).map_err(io_error("remove", dir)).err()).collect()
    }
}

/// Counts the processes in a cgroup and its descendants. A cgroup that does not exist has none.
fn count_processes(dir: &Path) -> Result<usize, CgroupError> {
    let path = dir.join("cgroup.procs");
    let own = match fs::read_to_string(&path) {
        Err(error) if is_gone(&error) => return Ok(0),
        result => result.map_err(io_error("read", &path))?.lines().count(),
    };
    let entries = match fs::read_dir(dir) {
        Err(error) if is_gone(&error) => return Ok(own),
        result => result.map_err(io_error("list", dir))?,
    };
    let below = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    below.map(|entry| count_processes(&entry.path())).try_fold(own, |sum, count| Ok(sum + count?))
}

/// Whether a cgroup does not exist. Reading one that is removed meanwhile fails with `ENODEV`.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV)
}

/// Whether a cgroup is frozen: by `cgroup.freeze` in version 2, by the freezer hierarchy in version 1.
fn is_frozen(dir: &Path) -> bool {
    let contains = |path: &Path, word| fs::read_to_string(path).is_ok_and(|text| text.trim() == word);
    let freezer = dir.strip_prefix(MOUNT).map(|path| path.components().skip(1).collect::<PathBuf>());
    let freezer = freezer.map(|path| Path::new(MOUNT).join("freezer").join(path).join("freezer.state"));
    contains(&dir.join("cgroup.freeze"), "1") || freezer.is_ok_and(|path| contains(&path, "FROZEN"))
}

/// Returns the hierarchy of a cgroup's directory. Hierarchies of version 1 are mounted under the names of their controllers.
fn version_of(dir: &Path) -> Version {
    let below = dir.strip_prefix(MOUNT).ok().and_then(|path| path.components().next());
    let is_v1 = |name: &&str| {
        statfs(dir).is_ok_and(|fs| fs.filesystem_type() == CGROUP_SUPER_MAGIC)
            && below == Some(Component::Normal((*name).as_ref()))
    };
    CONTROLLERS.into_iter().find(is_v1).map_or(Version::V2, Version::V1)
}

/// Returns `path` below the parent of the version 2 cgroup in `memberships`, the text of `/proc/self/cgroup`. Without such a parent
/// in view, `path` stays relative to the root.
fn sibling(memberships: &str, path: &Path) -> PathBuf {
    let own = memberships.lines().find_map(|line| line.strip_prefix("0::")).map(Path::new);
    let parent =
        own.and_then(Path::parent).filter(|parent| parent.components().all(|part| part != Component::ParentDir));
    parent.and_then(|parent| Some(parent.join(path.strip_prefix("/").ok()?))).unwrap_or_else(|| path.to_owned())
}

/// Returns the path without its leading slash, if it names a directory below the root.
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

/// Returns the mounted hierarchies: that of version 2, or those of version 1 whose controllers are in [`CONTROLLERS`].
fn hierarchies(mount: &Path) -> Result<Vec<(Version, PathBuf)>, CgroupError> {
    if statfs(mount).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC) {
        return Ok(vec![(Version::V2, mount.into())]);
    }
    let found = CONTROLLERS.into_iter().map(|name| (Version::V1(name), mount.join(name)));
    let found = found.filter(|(_, dir)| statfs(dir).is_ok_and(|fs| fs.filesystem_type() == CGROUP_SUPER_MAGIC));
    let found: Vec<_> = found.collect();
    if found.is_empty() { Err(CgroupError::NotMounted) } else { Ok(found) }
}

/// Describes the mounted hierarchies for `vmrt check`.
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

/// Creates every directory down to `path`, and enables the controllers for it.
fn create_dirs(version: Version, root: &Path, path: &Path) -> Result<(), CgroupError> {
    let mut dir = root.to_owned();
    for part in path.components() {
        if version == Version::V2 {
            enable_controllers(&dir);
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

/// Enables every available controller for the children of `dir`. A failure is ignored: if the controller is needed, writing its limit
/// fails with an error that names the file.
fn enable_controllers(dir: &Path) {
    for controller in CONTROLLERS {
        let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Copies the CPUs and memory nodes of the parent to a new v1 cpuset, which accepts no process without them.
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
    let swap = limits.swap.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string());
    write_if_present(&dir.join("memory.swap.max"), &swap)?;
    write(&dir.join("pids.max"), &limits.pids.to_string())?;
    if let Some((quota, period)) = limits.cpu_quota {
        write(&dir.join("cpu.max"), &format!("{quota} {period}"))?;
    }
    if let Some(idle) = limits.cpu_idle {
        write(&dir.join("cpu.idle"), if idle { "1" } else { "0" })?;
    }
    if let Some(shares) = limits.cpu_shares.filter(|_| limits.cpu_idle != Some(true)) {
        write(&dir.join("cpu.weight"), &agent::cpu_weight(shares).to_string())?;
    }
    set_cpuset(dir, limits)?;
    set_all(dir, limits.block_io.cgroup_v2_settings(|file| dir.join(file).exists()))
}

fn set_v1(controller: &str, dir: &Path, limits: &Limits) -> Result<(), CgroupError> {
    match controller {
        "memory" => set_v1_memory(dir, limits),
        "pids" => write(&dir.join("pids.max"), &limits.pids.to_string()),
        "cpu" => set_v1_cpu(dir, limits),
        "blkio" => set_all(dir, limits.block_io.cgroup_v1_settings(|file| dir.join(file).exists())),
        _ => set_cpuset(dir, limits),
    }
}

/// Sets the limit of memory, and that of memory and swap together, which may not be lower. So the second one is removed first.
fn set_v1_memory(dir: &Path, limits: &Limits) -> Result<(), CgroupError> {
    let total = dir.join("memory.memsw.limit_in_bytes");
    write_if_present(&total, "-1")?;
    write(&dir.join("memory.limit_in_bytes"), &limits.memory.to_string())?;
    match limits.swap {
        Some(swap) => write_if_present(&total, &limits.memory.saturating_add(swap).to_string()),
        None => Ok(()),
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

/// Writes limits in order, each in a write of its own: a file may take several.
fn set_all(dir: &Path, values: Vec<(&str, String)>) -> Result<(), CgroupError> {
    values.into_iter().try_for_each(|(file, value)| write(&dir.join(file), &value))
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    // The file is not created if the controller is absent: a limit that cannot be set is an error.
    let file = fs::OpenOptions::new().write(true).open(path);
    let written = file.and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
    written.map_err(io_error("set", path))
}

/// Writes a limit of swap. A host without swap accounting does not have the file.
fn write_if_present(path: &Path, value: &str) -> Result<(), CgroupError> {
    if path.exists() { write(path, value) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
