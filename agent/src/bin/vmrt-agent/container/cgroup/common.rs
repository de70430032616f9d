//! The cgroup above those of all containers. It keeps the agent out of their reach: what they have used up, memory or
//! processes, runs out in this cgroup and never in the guest as a whole, where the kernel and the agent need some.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use super::{enable_controllers, open_directory};
use crate::error::Error;
use crate::machine;

/// Its name below the root. Nobody in a container ever sees it.
const NAME: &str = "containers";

/// Bytes of memory that containers cannot use, whatever the machine's size: for the agent, network and file system buffers,
/// and what the kernel must have free to work at all.
const RESERVE: u64 = 12 << 20;

/// One byte of so many that containers cannot use: the kernel keeps track of each page of memory.
const RESERVED_PART: u64 = 64;

/// Processes and threads of the guest that no container can have.
const RESERVED_PIDS: u64 = 4096;

/// The cgroup, and the memory it is bound by.
pub(crate) struct Common {
    directory: OwnedFd,
    booted_with: u64,
}

impl Common {
    /// Makes it below the cgroup `root`. From then on the agent sees the cgroup as the root, and so do containers that have no
    /// cgroup namespace of their own.
    pub(crate) fn make(root: BorrowedFd<'_>) -> Result<Self, Error> {
        let step = || Error::at("make the cgroup of all containers");
        rustix::fs::mkdirat(root, NAME, Mode::from_raw_mode(0o755)).map_err(step())?;
        let directory = open_directory(root, NAME).map_err(step())?;
        let common = Self { directory, booted_with: machine::memory() };
        // Before there are controllers, to whom a process that moves is work.
        common.show_as_root(root).map_err(step())?;
        enable_controllers(root).map_err(Error::at("enable cgroup controllers"))?;
        enable_controllers(common.directory()).map_err(Error::at("enable cgroup controllers"))?;
        common.limit_processes().map_err(step())?;
        common.set_memory(common.most_memory(0)).map_err(step())?;
        Ok(common)
    }

    /// Its directory, below which containers have their cgroups.
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The machine has `plugged` bytes more than it booted with.
    pub(crate) fn follow_memory(&self, plugged: u64) -> Result<(), Error> {
        let step = || Error::at("let containers use the machine's memory");
        let current = read_number(self.directory(), "memory.current").map_err(step())?;
        // Nobody is killed for what the machine has given back already.
        self.set_memory(self.most_memory(plugged).max(current)).map_err(step())
    }

    /// A cgroup namespace begins where its maker is, so the agent goes there for a moment. Mounts made earlier show all.
    fn show_as_root(&self, root: BorrowedFd<'_>) -> rustix::io::Result<()> {
        let move_to = |cgroup| machine::write_in(cgroup, "cgroup.procs", b"0");
        move_to(self.directory())?;
        // SAFETY: a cgroup namespace changes only how paths of cgroups are shown; no memory or descriptor is touched.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }?;
        move_to(root)
    }

    fn limit_processes(&self) -> rustix::io::Result<()> {
        let most = machine::MOST_PIDS - RESERVED_PIDS;
        machine::write_in(self.directory(), "pids.max", most.to_string().as_bytes())
    }

    fn most_memory(&self, plugged: u64) -> u64 {
        available(self.booted_with + plugged)
    }

    fn set_memory(&self, bytes: u64) -> rustix::io::Result<()> {
        machine::write_in(self.directory(), "memory.max", bytes.to_string().as_bytes())
    }
}

/// How much of `total` bytes containers may use.
fn available(total: u64) -> u64 {
    total.saturating_sub(RESERVE + total / RESERVED_PART)
}

fn read_number(directory: BorrowedFd<'_>, file: &str) -> rustix::io::Result<u64> {
    let file = machine::read_in(directory, file, 64)?;
    String::from_utf8_lossy(&file).trim().parse().map_err(|_| Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn some_memory_is_left_to_the_guest() {
        assert_eq!(available(64 * MIB), 51 * MIB);
        assert_eq!(available(1024 * MIB), 996 * MIB);
        assert_eq!(available(MIB), 0);
    }

    #[test]
    fn containers_use_what_is_plugged_and_keep_what_they_use() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        std::fs::write(file("memory.max"), "").unwrap();
        let opened = std::fs::File::open(directory.path()).unwrap();
        let common = Common { directory: opened.into(), booted_with: 256 * MIB };
        let follow = |used: u64, plugged| {
            std::fs::write(file("memory.current"), format!("{used}\n")).unwrap();
            common.follow_memory(plugged).unwrap();
            let text = std::fs::read_to_string(file("memory.max")).unwrap();
            text[..9].parse::<u64>().unwrap() / MIB
        };
        assert_eq!(follow(MIB, 256 * MIB), 492);
        assert_eq!(follow(MIB, 0), 240);
        assert_eq!(follow(250 * MIB, 0), 250);
    }
}
