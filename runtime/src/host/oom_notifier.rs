//! The OOM notifier: a process that the host's OOM killer is to kill.
//!
//! Engines detect that a container ran out of memory by the counter `oom_kill` of its cgroup on the host (cgroup v1: by the
//! cgroup's notification). The VMM is in that cgroup, but the host does not count OOM kills of the guest's kernel. For each of
//! them the VMM's helper, which is in that cgroup too, therefore starts this process. It allocates all memory that the cgroup's limit leaves and is the OOM killer's
//! preferred choice. Its memory is free again as soon as the host has counted the kill.

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use thiserror::Error;

/// Name of the command that runs the OOM notifier.
pub(crate) const COMMAND: &str = "oom-notifier";

/// The process's name, which the kernel's log names. At most 15 bytes.
const NAME: &str = "vmrt-oom-notify";

/// Mount point of the cgroup file systems.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Bytes allocated at a time.
const CHUNK: NonZeroUsize = NonZeroUsize::new(4 << 20).unwrap();

/// Bytes that other processes of the cgroup may free meanwhile, and that have to stay free outside of the cgroup.
const MARGIN: u64 = 64 << 20;

/// A limit of at least this many bytes means no limit: cgroup v1 has no other value for it.
const UNLIMITED: u64 = 1 << 60;

/// Why the process was not killed.
#[derive(Debug, Error)]
pub(crate) enum OomNotifierError {
    /// A system call or a file of `/proc` failed.
    #[error("cannot {0}")]
    System(&'static str, #[source] io::Error),
    /// The cgroup has no limit, or the allocation would affect processes outside of it.
    #[error("the memory of the cgroup has no limit that can be reached without affecting other processes")]
    NoLimit,
    /// The memory cannot be mapped.
    #[error("cannot map memory")]
    Map(#[source] nix::Error),
    /// The limit was raised meanwhile.
    #[error("the process reached the limit of the cgroup's memory and was not killed")]
    NotKilled,
}

/// Allocates memory until the kernel kills the process. The process also ends when the helper does.
///
/// # Errors
/// The process was not killed.
pub(crate) fn run() -> Result<(), OomNotifierError> {
    let system = |step| move |error| OomNotifierError::System(step, error);
    prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|error| OomNotifierError::System("request to be killed when the helper ends", error.into()))?;
    fs::write("/proc/self/comm", NAME).map_err(system("set the process's name"))?;
    fs::write("/proc/self/oom_score_adj", "1000").map_err(system("become the OOM killer's first choice"))?;
    let read = |path| fs::read_to_string(path).map_err(system("read the cgroup's memory limit"));
    let available = available_memory(&read("/proc/meminfo")?);
    let room =
        cgroup_room(&read("/proc/self/cgroup")?, Path::new(CGROUPS), available).ok_or(OomNotifierError::NoLimit)?;
    let (protection, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
    for _ in 0..(room + MARGIN).div_ceil(CHUNK.get() as u64) {
        // SAFETY: a new mapping at an address of the kernel's choice affects no other memory. It stays until the process ends.
        unsafe { mmap_anonymous(None, CHUNK, protection, flags | MapFlags::MAP_POPULATE | MapFlags::MAP_LOCKED) }
            .map_err(OomNotifierError::Map)?;
    }
    Err(OomNotifierError::NotKilled)
}

/// The host's available memory in bytes, from the text of `/proc/meminfo`.
fn available_memory(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|number| number.parse::<u64>().ok());
    kilobytes.unwrap_or_default() << 10
}

/// Bytes that the limit of the process's cgroup leaves. `None` if the cgroup has no limit, or if one of its ancestors or the
/// host would run out of memory first.
///
/// `memberships` is the text of `/proc/self/cgroup`, `root` the mount point, `available` the host's available bytes.
fn cgroup_room(memberships: &str, root: &Path, available: u64) -> Option<u64> {
    let cgroup = MemoryCgroup::find(memberships, root)?;
    let room = cgroup.room(cgroup.path)?;
    let ancestors = cgroup.path.ancestors().skip(1).filter_map(|path| cgroup.room(path));
    let outside = ancestors.chain([available]).min()?;
    (outside > room + 2 * MARGIN).then_some(room)
}

/// A cgroup that the memory controller limits.
struct MemoryCgroup<'m> {
    /// The mount point of the hierarchy.
    hierarchy: PathBuf,
    /// The cgroup's path in the hierarchy.
    path: &'m Path,
    limit_file: &'static str,
    usage_file: &'static str,
}

impl<'m> MemoryCgroup<'m> {
    /// On a hybrid host the memory controller is in a cgroup v1 hierarchy of its own.
    fn find(memberships: &'m str, root: &Path) -> Option<Self> {
        let fields = || memberships.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        let relative = |path: &'m str| Path::new(path.trim_start_matches('/'));
        if let Some((_, path)) = fields().find(|(controllers, _)| controllers.split(',').any(|name| name == "memory")) {
            return Some(Self {
                hierarchy: root.join("memory"),
                path: relative(path),
                limit_file: "memory.limit_in_bytes",
                usage_file: "memory.usage_in_bytes",
            });
        }
        let (_, path) = fields().find(|(controllers, _)| controllers.is_empty())?;
        Some(Self {
            hierarchy: root.to_owned(),
            path: relative(path),
            limit_file: "memory.max",
            usage_file: "memory.current",
        })
    }

    /// Bytes that the limit of the cgroup at `path` leaves; `None` if it has no limit. An unreadable usage counts as full.
    fn room(&self, path: &Path) -> Option<u64> {
        let number = |file| fs::read_to_string(self.hierarchy.join(path).join(file)).ok()?.trim().parse::<u64>().ok();
        let limit = number(self.limit_file).filter(|limit| *limit < UNLIMITED)?;
        Some(limit.saturating_sub(number(self.usage_file).unwrap_or(limit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn cgroup(root: &Path, path: &str, files: [(&str, &str); 2]) {
        fs::create_dir_all(root.join(path)).unwrap();
        files.iter().for_each(|(name, value)| fs::write(root.join(path).join(name), format!("{value}\n")).unwrap());
    }

    #[test]
    fn the_room_is_what_the_limit_leaves() {
        let root = tempfile::tempdir().unwrap();
        cgroup(root.path(), "a/b", [("memory.max", "104857600"), ("memory.current", "4857600")]);
        cgroup(root.path(), "a", [("memory.max", "max"), ("memory.current", "9000000")]);
        assert_eq!(cgroup_room("0::/a/b\n", root.path(), GIB), Some(100_000_000));
        assert_eq!(cgroup_room("0::/a\n", root.path(), GIB), None, "no limit");
        assert_eq!(cgroup_room("0::/\n", root.path(), GIB), None, "the root");
        assert_eq!(
            cgroup_room("0::/a/b\n", root.path(), 200_000_000),
            None,
            "the host has not enough available memory"
        );
    }

    #[test]
    fn an_ancestor_that_would_run_out_first_prevents_the_allocation() {
        let root = tempfile::tempdir().unwrap();
        cgroup(root.path(), "a/b", [("memory.max", "104857600"), ("memory.current", "4857600")]);
        cgroup(root.path(), "a", [("memory.max", "204857600"), ("memory.current", "4857600")]);
        assert_eq!(cgroup_room("0::/a/b\n", root.path(), GIB), None);
    }

    #[test]
    fn cgroup_v1_has_a_hierarchy_of_its_own() {
        let root = tempfile::tempdir().unwrap();
        let files = [("memory.limit_in_bytes", "5000"), ("memory.usage_in_bytes", "2000")];
        cgroup(root.path(), "memory/c", files);
        let memberships = "12:memory:/c\n3:cpu,cpuacct:/d\n0::/e\n";
        assert_eq!(cgroup_room(memberships, root.path(), GIB), Some(3000));
        let unlimited = [("memory.limit_in_bytes", "9223372036854771712"), ("memory.usage_in_bytes", "2000")];
        cgroup(root.path(), "memory/c", unlimited);
        assert_eq!(cgroup_room(memberships, root.path(), GIB), None);
    }

    #[test]
    fn the_hosts_available_memory_is_read() {
        assert_eq!(available_memory("MemTotal:  8000 kB\nMemAvailable:     4000 kB\n"), 4_096_000);
        assert_eq!(available_memory(""), 0);
    }
}
