//! The cgroup above those of all containers. It keeps the agent out of their reach: what they have used up, memory or
//! processes, runs out in this cgroup and never in the guest as a whole, where the kernel and the agent need some.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use super::limits;
use crate::error::Error;
use crate::sys::files;

/// Its name below the root. Nobody in a container ever sees it.
const NAME: &str = "containers";

/// Bytes of what is free at the start that containers cannot use, whatever the machine's size: for the agent, and for buffers of the
/// network and of files.
const RESERVE: u64 = 8 << 20;

/// One byte of so many that containers cannot use: the kernel keeps track of each page of memory, and wants some free at all times.
const RESERVED_PART: u64 = 64;

/// Processes and threads of the guest that no container can have.
const RESERVED_PIDS: u64 = 4096;

/// The cgroup, and the memory that its limit follows from.
pub(crate) struct ContainersCgroup {
    directory: OwnedFd,
    at_start: Memory,
}

/// Bytes of memory.
#[derive(Clone, Copy, Debug)]
struct Memory {
    total: u64,
    free: u64,
}

impl ContainersCgroup {
    /// Makes it below the cgroup `root`. From then on the agent sees the cgroup as the root, and so do containers that have no
    /// cgroup namespace of their own.
    pub(crate) fn make(root: BorrowedFd<'_>) -> Result<Self, Error> {
        let step = || Error::at("make the cgroup of all containers");
        rustix::fs::mkdirat(root, NAME, Mode::from_raw_mode(0o755)).map_err(step())?;
        let directory = open_directory(root, NAME).map_err(step())?;
        let common = Self { directory, at_start: Memory::now() };
        // Before there are controllers, to whom a process that moves is work.
        common.show_as_root(root).map_err(step())?;
        enable_controllers(root).map_err(Error::at("enable cgroup controllers"))?;
        enable_controllers(common.directory()).map_err(Error::at("enable cgroup controllers"))?;
        common.limit_processes().map_err(step())?;
        common.set_memory(common.at_start.for_containers(0)).map_err(step())?;
        Ok(common)
    }

    /// Its directory, below which containers have their cgroups.
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The machine has `plugged` bytes more than it booted with.
    pub(crate) fn set_plugged_memory(&self, plugged: u64) -> Result<(), Error> {
        let step = || Error::at("let containers use the machine's memory");
        let current = read_number(self.directory(), "memory.current").map_err(step())?;
        // Nobody is killed for what the machine has given back already.
        self.set_memory(self.at_start.for_containers(plugged).max(current)).map_err(step())
    }

    /// A cgroup namespace begins where its maker is, so the agent goes there for a moment. Mounts made earlier show all.
    fn show_as_root(&self, root: BorrowedFd<'_>) -> rustix::io::Result<()> {
        let move_to = |cgroup| files::write_at(cgroup, "cgroup.procs", b"0");
        move_to(self.directory())?;
        // SAFETY: a cgroup namespace changes only how paths of cgroups are shown; no memory or descriptor is touched.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }?;
        move_to(root)
    }

    fn limit_processes(&self) -> rustix::io::Result<()> {
        let most = limits::MAX_PIDS - RESERVED_PIDS;
        files::write_at(self.directory(), "pids.max", most.to_string().as_bytes())
    }

    fn set_memory(&self, bytes: u64) -> rustix::io::Result<()> {
        files::write_at(self.directory(), "memory.max", bytes.to_string().as_bytes())
    }
}

impl Memory {
    /// What the guest has.
    fn now() -> Self {
        let info = rustix::system::sysinfo();
        let bytes = |units: u64| units.saturating_mul(info.mem_unit.into());
        Self { total: bytes(info.totalram), free: bytes(info.freeram) }
    }

    /// How much of it containers may use once there are `plugged` bytes more.
    fn for_containers(self, plugged: u64) -> u64 {
        (self.free + plugged).saturating_sub(RESERVE + (self.total + plugged) / RESERVED_PART)
    }
}

fn read_number(directory: BorrowedFd<'_>, file: &str) -> rustix::io::Result<u64> {
    let file = files::read_at(directory, file, 64)?;
    String::from_utf8_lossy(&file).trim().parse().map_err(|_| Errno::INVAL)
}

/// Hands every controller of the cgroup `directory` down to the cgroups below it.
pub(crate) fn enable_controllers(directory: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let available = rustix::fs::openat(directory, "cgroup.controllers", flags, Mode::empty())?;
    let available = read_all(available.as_fd())?;
    let wanted: Vec<_> = available.split_whitespace().map(|name| format!("+{name}")).collect();
    files::write_at(directory, "cgroup.subtree_control", wanted.join(" ").as_bytes())
}

pub(crate) fn open_directory(parent: BorrowedFd<'_>, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// The whole of a control file, from its beginning.
pub(crate) fn read_all(file: BorrowedFd<'_>) -> rustix::io::Result<String> {
    let mut content = Vec::new();
    let mut chunk = [0; CHUNK];
    loop {
        match rustix::io::pread(file, &mut chunk, content.len() as u64)? {
            0 => return String::from_utf8(content).map_err(|_| Errno::ILSEQ),
            count => content.extend_from_slice(&chunk[..count]),
        }
    }
}

/// Bytes of a control file that are read at once.
const CHUNK: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn some_memory_is_left_to_the_guest() {
        let memory = Memory { total: 64 * MIB, free: 40 * MIB };
        assert_eq!(memory.for_containers(0), 31 * MIB);
        assert_eq!(memory.for_containers(1024 * MIB), 1039 * MIB);
        assert_eq!(Memory { total: 64 * MIB, free: 5 * MIB }.for_containers(0), 0);
    }

    #[test]
    fn containers_use_what_is_plugged_and_keep_what_they_use() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        std::fs::write(file("memory.max"), "").unwrap();
        let opened = std::fs::File::open(directory.path()).unwrap();
        let common =
            ContainersCgroup { directory: opened.into(), at_start: Memory { total: 256 * MIB, free: 230 * MIB } };
        let follow = |used: u64, plugged| {
            std::fs::write(file("memory.current"), format!("{used}\n")).unwrap();
            common.set_plugged_memory(plugged).unwrap();
            let text = std::fs::read_to_string(file("memory.max")).unwrap();
            text[..9].parse::<u64>().unwrap() / MIB
        };
        assert_eq!(follow(MIB, 256 * MIB), 470);
        assert_eq!(follow(MIB, 0), 218);
        assert_eq!(follow(250 * MIB, 0), 250);
    }
}
