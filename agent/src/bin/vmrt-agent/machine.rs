//! The guest as a whole: what PID 1 makes of a bare kernel, and how it ends.
//!
//! The initramfs holds nothing but the agent. Besides its root the agent keeps only one mount in its own mount
//! namespace, the shares: every container's namespace starts as a copy of it, so each mount more would cost every
//! start. Its `/proc` and cgroup file systems are therefore *detached* mounts that only their descriptors lead to.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, move_mount, open_tree,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::system::RebootCommand;

use crate::container::cgroup::Common;
use crate::error::Error;
use crate::log;
use crate::special;
use crate::sys::{self, SchedulerAttr};

/// File systems the agent works with, made when the first container needs them at the latest.
pub(crate) struct FileSystems {
    proc: OwnedFd,
    cgroups: Common,
}

/// Makes the devices the agent itself needs, and a root that containers can pivot away from.
pub(crate) fn set_up() -> Result<OwnedFd, Error> {
    rustix::process::umask(Mode::empty());
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(Error::at("make the agent undumpable"))?;
    make_directory("/dev")?;
    let null = device("/dev/null", 1, 3)?;
    occupy_standard_streams(&null)?;
    log::set_up(device("/dev/kmsg", 1, 11)?);
    leave_initial_root()?;
    hide_program()?;
    raise_limits()?;
    Ok(null)
}

/// The agent runs before everything else that could: what it has to tell, an end above all, is not held up by the kernel's own
/// clearing away, nor by what containers do. It is seldom awake, and real-time processes never get all of a CPU.
pub(crate) fn come_first() -> Result<(), Error> {
    become_real_time(2)
}

/// A new process, which is a copy of the agent, runs behind the agent and before all others until it is set up: in a container
/// with thousands of busy processes it would not get there in any time that somebody waits.
pub(crate) fn come_second() -> Result<(), Error> {
    become_real_time(1)
}

fn become_real_time(priority: u32) -> Result<(), Error> {
    let attr = SchedulerAttr { policy: libc::SCHED_FIFO.cast_unsigned(), priority, ..SchedulerAttr::usual() };
    sys::set_scheduler(sys::CALLER, &attr).map_err(Error::at("become a real-time process"))
}

fn make_directory(path: &str) -> Result<(), Error> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(Error::on("make directory", path)(error)),
    }
}

pub(crate) fn device(path: &str, major: u32, minor: u32) -> Result<OwnedFd, Error> {
    let number = rustix::fs::makedev(major, minor);
    match rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), number) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(Error::on("make device", path)(error)),
    }
    rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(Error::on("open", path))
}

/// Without a console the kernel starts PID 1 with no descriptor open at all. Descriptors 0 to 2 are what a container's
/// process puts its streams on, so nothing else may ever get one of these numbers.
fn occupy_standard_streams(null: &OwnedFd) -> Result<(), Error> {
    rustix::stdio::dup2_stdin(null)
        .and_then(|()| rustix::stdio::dup2_stdout(null))
        .and_then(|()| rustix::stdio::dup2_stderr(null))
        .map_err(Error::at("open standard streams"))
}

/// The kernel refuses `pivot_root` to a process whose root is the initial one, because nothing is below it. A copy of
/// that mount, mounted on top of it, has it below.
fn leave_initial_root() -> Result<(), Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let root = open_tree(CWD, "/", flags).map_err(Error::at("copy the initial root"))?;
    move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(Error::at("mount a copy of the initial root"))?;
    rustix::process::fchdir(&root).map_err(Error::at("enter the new root"))?;
    rustix::process::chroot(".").map_err(Error::at("change to the new root"))
}

/// Takes the agent's program out of reach of whoever might find a way to the initial root.
fn hide_program() -> Result<(), Error> {
    match rustix::fs::unlink("/init") {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(Error::at("remove /init")(error)),
    }
}

impl FileSystems {
    /// Mounts them, and the shares at [`agent::SHARES_DIR`].
    pub(crate) fn mount() -> Result<Self, Error> {
        mount_shares()?;
        let proc = detached("proc")?;
        set_kernel_parameters(proc.as_fd())?;
        let cgroups = Common::make(detached("cgroup2")?.as_fd())?;
        Ok(Self { proc, cgroups })
    }

    /// The guest's own `/proc`.
    pub(crate) fn proc(&self) -> BorrowedFd<'_> {
        self.proc.as_fd()
    }

    /// The cgroup of all containers.
    pub(crate) fn cgroups(&self) -> &Common {
        &self.cgroups
    }
}

/// Mounts `/proc` and `/sys`, if they are not: the kernel lets a user namespace mount its own only where it sees one already.
pub(crate) fn show_kernel_files() -> Result<(), Error> {
    for (kind, path, content) in [("proc", "/proc", "/proc/self"), ("sysfs", "/sys", "/sys/kernel")] {
        if rustix::fs::lstat(content).is_ok() {
            continue;
        }
        make_directory(path)?;
        let mount =
            new_file_system(kind, kind, MountAttrFlags::empty()).map_err(Error::at(format!("make a {kind}")))?;
        move_mount(&mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(Error::on("mount on", path))?;
    }
    Ok(())
}

/// Mounts a file system for special files, if there is none: in that of the initial root nobody's owners can be mapped.
pub(crate) fn mount_special() -> Result<(), Error> {
    mount_once("tmpfs", agent::SPECIAL_DIR).map(drop)
}

/// Mounts a file system of the guest's own at `path`, if there is none; whether that was so.
pub(crate) fn mount_once(kind: &str, path: &str) -> Result<bool, Error> {
    special::make_directories(Path::new(path))?;
    let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::empty()).map_err(Error::on("examine", path))?;
    if stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(false);
    }
    let mount = new_file_system(kind, kind, MountAttrFlags::empty()).map_err(Error::at(format!("make a {kind}")))?;
    move_mount(&mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(Error::on("mount on", path))?;
    Ok(true)
}

/// Processes and threads that the guest may have: as many as hosts with systemd, however little memory it boots with. What they
/// take of that counts for their container.
pub(crate) const MOST_PIDS: u64 = 4_194_304;

/// What the kernel is told of once.
const KERNEL_PARAMETERS: [(&str, &str); 5] = [
    // Otherwise the fallback device of every tunnel driver is made in every new network namespace.
    ("net/core/fb_tunnels_only_for_init_net", "1"),
    // How many descriptors a process may be allowed: what hosts with systemd have.
    ("fs/nr_open", "1073741816"),
    ("kernel/pid_max", "4194304"),
    ("kernel/threads-max", "4194304"),
    // Nobody reads the list of all processes that the kernel would make whenever memory runs out, and many take it long.
    ("vm/oom_dump_tasks", "0"),
];

/// Has users other than root have as many processes and pending signals as on a host where the guest's number of processes is
/// usual: half of them.
fn raise_limits() -> Result<(), Error> {
    let most = Some(MOST_PIDS / 2);
    for resource in [Resource::Nproc, Resource::Sigpending] {
        setrlimit(resource, Rlimit { current: most, maximum: most })
            .map_err(Error::at(format!("set limit {resource:?}")))?;
    }
    Ok(())
}

fn set_kernel_parameters(proc: BorrowedFd<'_>) -> Result<(), Error> {
    for (name, value) in KERNEL_PARAMETERS {
        match write_in(proc, &format!("sys/{name}"), value.as_bytes()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(Error::at(format!("set kernel parameter {name} of the guest"))(error)),
        }
    }
    Ok(())
}

/// A file system that is mounted nowhere.
pub(crate) fn detached(kind: &str) -> Result<OwnedFd, Error> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    new_file_system(kind, kind, attributes).map_err(Error::on("mount", kind))
}

/// `source` is what tools show it as.
fn new_file_system(kind: &str, source: &str, attributes: MountAttrFlags) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", source)?;
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn mount_shares() -> Result<(), Error> {
    let mut path = String::new();
    for name in agent::SHARES_DIR.split('/').filter(|name| !name.is_empty()) {
        path = format!("{path}/{name}");
        make_directory(&path)?;
    }
    let shares = new_file_system("virtiofs", agent::SHARES_TAG, MountAttrFlags::empty())
        .map_err(Error::at("mount the shares"))?;
    move_mount(&shares, "", CWD, agent::SHARES_DIR, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(Error::on("mount the shares on", agent::SHARES_DIR))
}

/// Opens what is below `directory`.
pub(crate) fn open_in(directory: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Error> {
    rustix::fs::openat(directory, path, flags | OFlags::CLOEXEC, Mode::empty()).map_err(Error::on("open", path))
}

/// Writes to an existing file of a kernel file system, in one call as those want it.
pub(crate) fn write_in(directory: BorrowedFd<'_>, path: &str, content: &[u8]) -> rustix::io::Result<()> {
    let file = rustix::fs::openat(directory, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, content).map(drop)
}

/// Reads a file of a kernel file system, and no more than `limit` bytes of it.
pub(crate) fn read_in(directory: BorrowedFd<'_>, path: &str, limit: usize) -> rustix::io::Result<Vec<u8>> {
    let file = rustix::fs::openat(directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut content = vec![0; limit];
    let mut length = 0;
    while length < limit {
        match rustix::io::read(&file, &mut content[length..])? {
            0 => break,
            count => length += count,
        }
    }
    content.truncate(length);
    Ok(content)
}

/// Writes everything back and resets the machine, which ends the VM.
pub(crate) fn power_off() -> ! {
    rustix::fs::sync();
    reset()
}

/// Resets the machine at once.
pub(crate) fn reset() -> ! {
    let _ = rustix::system::reboot(RebootCommand::Restart);
    // Only reached where the process is not a machine's PID 1; ending then is all that is left to do.
    std::process::abort()
}
