//! A process for the host's kernel to kill for want of memory.
//!
//! Engines learn of a container that ran out of memory from the counter `oom_kill` of its cgroup on the host (v1: from the
//! cgroup's notification). The VMM is in that cgroup, but what the guest's kernel kills the host's never hears of. So for a
//! death in the guest the VMM has this program take all that the cgroup's limit leaves, as the first in the kernel's choice of
//! whom to kill. Its memory is gone as soon as it has been counted.

use std::fs;
use std::io;
use std::path::Path;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use thiserror::Error;
use vm_memory::MmapRegion;
use vm_memory::mmap::MmapRegionError;

/// The argument with which `vmrt-vmm` is this program.
pub const ARGUMENT: &str = "--oom-victim";

/// Where the cgroups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Bytes taken at a time.
const CHUNK: usize = 4 << 20;

/// What others in the cgroup may give back meanwhile, in bytes, and what has to stay free around it.
const MARGIN: u64 = 64 << 20;

/// Limits above are none.
const UNLIMITED: u64 = 1 << 60;

const PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE | libc::MAP_LOCKED;

/// Why nobody was killed.
#[derive(Debug, Error)]
pub enum VictimError {
    /// The process cannot offer itself.
    #[error("cannot {0}")]
    System(&'static str, #[source] io::Error),
    /// The cgroup has no limit, or others would feel it.
    #[error("the cgroup's memory has no limit that could be reached without touching what others have")]
    NoLimit,
    /// The memory cannot be mapped.
    #[error("cannot map memory")]
    Map(#[from] MmapRegionError),
    /// The limit was not reached.
    #[error("the limit of the cgroup's memory moved away")]
    Alive,
}

/// Takes memory until the kernel kills the process.
///
/// # Errors
/// It was not killed.
pub fn run() -> Result<(), VictimError> {
    let system = |step| move |error| VictimError::System(step, error);
    // A VMM that ends takes it along.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| VictimError::System("die with the VMM", error.into()))?;
    fs::write("/proc/self/comm", "vmrt-oom-victim").map_err(system("take a name"))?;
    fs::write("/proc/self/oom_score_adj", "1000").map_err(system("become the first choice"))?;
    let read = |path| fs::read_to_string(path).map_err(system("read what is left"));
    let available = available(&read("/proc/meminfo")?);
    let left = room(&read("/proc/self/cgroup")?, Path::new(CGROUPS), available).ok_or(VictimError::NoLimit)?;
    let mut taken = Vec::new();
    for _ in 0..(left + MARGIN).div_ceil(CHUNK as u64) {
        taken.push(MmapRegion::<()>::build(None, CHUNK, PROTECTION, FLAGS)?);
    }
    Err(VictimError::Alive)
}

/// The host's free memory in bytes, by `/proc/meminfo`.
fn available(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|number| number.parse::<u64>().ok());
    kilobytes.unwrap_or_default() << 10
}

/// What the limit of the process's cgroup leaves, in bytes. None where it has no limit, or where a cgroup above it or the host
/// would run out first.
fn room(memberships: &str, root: &Path, available: u64) -> Option<u64> {
    let (hierarchy, path, files) = memory_cgroup(memberships, root)?;
    let left = |path: &Path| {
        let number = |file| fs::read_to_string(hierarchy.join(path).join(file)).ok()?.trim().parse::<u64>().ok();
        number(files.0)
            .filter(|limit| *limit < UNLIMITED)
            .map(|limit| limit.saturating_sub(number(files.1).unwrap_or(limit)))
    };
    let own = left(path)?;
    let around = path.ancestors().skip(1).filter_map(left).chain([available]).min()?;
    (around > own + 2 * MARGIN).then_some(own)
}

/// The memory controller's hierarchy, the cgroup in it, and the files of its limit and its use. On a hybrid host the controller
/// is in a hierarchy of its own.
fn memory_cgroup<'m>(
    memberships: &'m str,
    root: &Path,
) -> Option<(std::path::PathBuf, &'m Path, (&'static str, &'static str))> {
    let fields = || memberships.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let relative = |path: &'m str| Path::new(path.trim_start_matches('/'));
    if let Some((_, path)) = fields().find(|(controllers, _)| controllers.split(',').any(|name| name == "memory")) {
        return Some((root.join("memory"), relative(path), ("memory.limit_in_bytes", "memory.usage_in_bytes")));
    }
    let (_, path) = fields().find(|(controllers, _)| controllers.is_empty())?;
    Some((root.to_owned(), relative(path), ("memory.max", "memory.current")))
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
    fn what_the_limit_leaves_is_taken() {
        let root = tempfile::tempdir().unwrap();
        cgroup(root.path(), "a/b", [("memory.max", "104857600"), ("memory.current", "4857600")]);
        cgroup(root.path(), "a", [("memory.max", "max"), ("memory.current", "9000000")]);
        assert_eq!(room("0::/a/b\n", root.path(), GIB), Some(100_000_000));
        assert_eq!(room("0::/a\n", root.path(), GIB), None, "no limit");
        assert_eq!(room("0::/\n", root.path(), GIB), None, "the root");
        assert_eq!(room("0::/a/b\n", root.path(), 200_000_000), None, "the host has not so much to spare");
    }

    #[test]
    fn a_limit_above_that_would_be_reached_first_is_respected() {
        let root = tempfile::tempdir().unwrap();
        cgroup(root.path(), "a/b", [("memory.max", "104857600"), ("memory.current", "4857600")]);
        cgroup(root.path(), "a", [("memory.max", "204857600"), ("memory.current", "4857600")]);
        assert_eq!(room("0::/a/b\n", root.path(), GIB), None);
    }

    #[test]
    fn the_first_version_has_a_hierarchy_of_its_own() {
        let root = tempfile::tempdir().unwrap();
        let files = [("memory.limit_in_bytes", "5000"), ("memory.usage_in_bytes", "2000")];
        cgroup(root.path(), "memory/c", files);
        let memberships = "12:memory:/c\n3:cpu,cpuacct:/d\n0::/e\n";
        assert_eq!(room(memberships, root.path(), GIB), Some(3000));
        let unlimited = [("memory.limit_in_bytes", "9223372036854771712"), ("memory.usage_in_bytes", "2000")];
        cgroup(root.path(), "memory/c", unlimited);
        assert_eq!(room(memberships, root.path(), GIB), None);
    }

    #[test]
    fn the_hosts_free_memory_is_read() {
        assert_eq!(available("MemTotal:  8000 kB\nMemAvailable:     4000 kB\n"), 4_096_000);
        assert_eq!(available(""), 0);
    }
}
