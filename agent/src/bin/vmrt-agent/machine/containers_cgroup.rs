//! The cgroup that contains the cgroups of all containers. Its limits reserve memory and processes for the kernel and
//! the agent: when containers use up either, they reach the limit of this cgroup and never that of the guest.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use super::limits;
use crate::error::Error;
use crate::sys::cgroup::{enable_controllers, open_directory};
use crate::sys::files;

/// Its name below the root. Containers do not see it.
const NAME: &str = "containers";

/// Bytes of the memory that is free at the start which containers cannot use, independent of the machine's size: for
/// the agent, and for buffers of the network and of files.
const RESERVED_BYTES: u64 = 8 << 20;

/// Containers cannot use the total memory divided by this number: the kernel has a structure for each page, and needs
/// some free memory at all times.
const RESERVED_DIVISOR: u64 = 64;

/// Processes and threads of the guest that are reserved.
const RESERVED_PIDS: u64 = 4096;

/// The cgroup, and the memory at the start, on which its limit is based.
pub(crate) struct ContainersCgroup {
    directory: OwnedFd,
    at_start: Memory,
}

/// Sizes in bytes.
#[derive(Clone, Copy, Debug)]
struct Memory {
    total: u64,
    free: u64,
}

impl ContainersCgroup {
    /// Makes the cgroup below the cgroup `root`. From then on the agent sees it as the root, and so do containers
    /// without a cgroup namespace of their own.
    pub(crate) fn make(root: BorrowedFd<'_>) -> Result<Self, Error> {
        let step = || Error::at("make the cgroup of all containers");
        rustix::fs::mkdirat(root, NAME, Mode::from_raw_mode(0o755)).map_err(step())?;
        let directory = open_directory(root, NAME).map_err(step())?;
        let cgroup = Self { directory, at_start: Memory::now() };
        // Moving a process is cheaper while no controllers are enabled.
        cgroup.make_cgroup_namespace(root).map_err(step())?;
        enable_controllers(root).map_err(Error::at("enable cgroup controllers"))?;
        enable_controllers(cgroup.directory()).map_err(Error::at("enable cgroup controllers"))?;
        cgroup.limit_processes().map_err(step())?;
        cgroup.set_memory(cgroup.at_start.available_to_containers(0)).map_err(step())?;
        Ok(cgroup)
    }

    /// Its directory, which contains the containers' cgroups.
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Adapts the memory limit to `plugged` bytes of memory that were added after the boot.
    pub(crate) fn set_plugged_memory(&self, plugged: u64) -> Result<(), Error> {
        let step = || Error::at("let containers use the machine's memory");
        let current = read_number(self.directory(), "memory.current").map_err(step())?;
        // A limit below the current usage would kill processes for memory that the machine has already given back.
        self.set_memory(self.at_start.available_to_containers(plugged).max(current)).map_err(step())
    }

    /// The root of a cgroup namespace is its creator's cgroup, so the agent moves there temporarily. Mounts that exist
    /// already still show the whole hierarchy.
    fn make_cgroup_namespace(&self, root: BorrowedFd<'_>) -> rustix::io::Result<()> {
        let move_to = |cgroup| files::write_at(cgroup, "cgroup.procs", b"0");
        move_to(self.directory())?;
        // SAFETY: a cgroup namespace changes only how paths of cgroups are shown; no memory or descriptor is affected.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }?;
        move_to(root)
    }

    fn limit_processes(&self) -> rustix::io::Result<()> {
        let limit = limits::MAX_PIDS - RESERVED_PIDS;
        files::write_at(self.directory(), "pids.max", limit.to_string().as_bytes())
    }

    fn set_memory(&self, bytes: u64) -> rustix::io::Result<()> {
        files::write_at(self.directory(), "memory.max", bytes.to_string().as_bytes())
    }
}

impl Memory {
    /// The current state of the guest.
    fn now() -> Self {
        let info = rustix::system::sysinfo();
        let bytes = |units: u64| units.saturating_mul(info.mem_unit.into());
        Self { total: bytes(info.totalram), free: bytes(info.freeram) }
    }

    /// Bytes that containers may use when `plugged` bytes were added.
    fn available_to_containers(self, plugged: u64) -> u64 {
        (self.free + plugged).saturating_sub(RESERVED_BYTES + (self.total + plugged) / RESERVED_DIVISOR)
    }
}

fn read_number(directory: BorrowedFd<'_>, file: &str) -> rustix::io::Result<u64> {
    let file = files::read_at(directory, file, 64)?;
    String::from_utf8_lossy(&file).trim().parse().map_err(|_| Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn some_memory_is_reserved_for_the_guest() {
        let memory = Memory { total: 64 * MIB, free: 40 * MIB };
        assert_eq!(memory.available_to_containers(0), 31 * MIB);
        assert_eq!(memory.available_to_containers(1024 * MIB), 1039 * MIB);
        assert_eq!(Memory { total: 64 * MIB, free: 5 * MIB }.available_to_containers(0), 0);
    }

    #[test]
    fn the_limit_follows_plugged_memory_but_not_below_the_usage() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        std::fs::write(file("memory.max"), "").unwrap();
        let opened = std::fs::File::open(directory.path()).unwrap();
        let cgroup =
            ContainersCgroup { directory: opened.into(), at_start: Memory { total: 256 * MIB, free: 230 * MIB } };
        let follow = |used: u64, plugged| {
            std::fs::write(file("memory.current"), format!("{used}\n")).unwrap();
            cgroup.set_plugged_memory(plugged).unwrap();
            let text = std::fs::read_to_string(file("memory.max")).unwrap();
            text[..9].parse::<u64>().unwrap() / MIB
        };
        assert_eq!(follow(MIB, 256 * MIB), 470);
        assert_eq!(follow(MIB, 0), 218);
        assert_eq!(follow(250 * MIB, 0), 250);
    }
}
