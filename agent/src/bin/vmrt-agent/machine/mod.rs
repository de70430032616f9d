//! The guest as a whole: its set-up by PID 1, its resources, and its end.
//!
//! The initramfs holds nothing but the agent. Besides its root the agent has only one permanent mount in its own mount
//! namespace, the shares: every container's mount namespace starts as a copy of it, so each further mount would slow
//! down every start. The agent's `/proc` and cgroup file systems are therefore *detached* mounts, reachable only
//! through their descriptors.

pub(crate) mod clock;
pub(crate) mod containers_cgroup;
pub(crate) mod cpus;
pub(crate) mod devices;
pub(crate) mod file_systems;
pub(crate) mod guest_dev;
pub(crate) mod limits;
pub(crate) mod log;
pub(crate) mod loop_devices;
pub(crate) mod priority;
pub(crate) mod random;

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::process::Pid;
use rustix::system::RebootCommand;

use crate::error::Error;

/// Whether this is the guest's first process, which no session contains. A container's process that executes `/proc/self/exe` while
/// that is the agent's program is in a session of its container.
pub(crate) fn is_booting() -> bool {
    // SAFETY: the system call has no memory as an argument. (rustix has no value for the session 0.)
    let session = unsafe { libc::getsid(0) };
    rustix::process::getpid() == Pid::INIT && session == 0
}

/// Makes the devices that the agent itself needs, and a root that containers can pivot away from. Returns an open
/// `/dev/null`.
pub(crate) fn set_up() -> Result<OwnedFd, Error> {
    rustix::process::umask(Mode::empty());
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(Error::at("make the agent non-dumpable"))?;
    file_systems::make_directory("/dev")?;
    let null = devices::make_and_open("/dev/null", 1, 3)?;
    occupy_standard_streams(&null)?;
    log::set_up(devices::make_and_open("/dev/kmsg", 1, 11)?);
    leave_initial_root()?;
    hide_program()?;
    limits::raise()?;
    Ok(null)
}

/// Opens descriptors 0 to 2. Without a console the kernel starts PID 1 with no open descriptor. A container's process
/// gets its standard streams as descriptors 0 to 2, so no other file may have one of these numbers.
fn occupy_standard_streams(null: &OwnedFd) -> Result<(), Error> {
    rustix::stdio::dup2_stdin(null)
        .and_then(|()| rustix::stdio::dup2_stdout(null))
        .and_then(|()| rustix::stdio::dup2_stderr(null))
        .map_err(Error::at("open standard streams"))
}

/// Changes to a root that `pivot_root` accepts. The kernel refuses the initial root, because no mount is below it. A
/// copy of that mount, attached on top of it, has one below.
fn leave_initial_root() -> Result<(), Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let root = open_tree(CWD, "/", flags).map_err(Error::at("copy the initial root"))?;
    move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(Error::at("mount a copy of the initial root"))?;
    rustix::process::fchdir(&root).map_err(Error::at("enter the new root"))?;
    rustix::process::chroot(".").map_err(Error::at("change to the new root"))
}

/// Removes the agent's program, so that a process that reaches the initial root does not find it.
fn hide_program() -> Result<(), Error> {
    match rustix::fs::unlink("/init") {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(Error::at("remove /init")(error)),
    }
}

/// Writes all data back and resets the machine, which ends the VM.
pub(crate) fn power_off() -> ! {
    rustix::fs::sync();
    reset()
}

/// Resets the machine at once.
pub(crate) fn reset() -> ! {
    let _ = rustix::system::reboot(RebootCommand::Restart);
    // Reached only if the process is not PID 1 of a machine.
    std::process::abort()
}
