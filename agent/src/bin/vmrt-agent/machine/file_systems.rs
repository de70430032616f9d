//! File systems that the agent mounts for itself and for its containers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    move_mount,
};

use super::containers_cgroup::ContainersCgroup;
use super::limits;
use crate::error::Error;
use crate::sys::files;

/// File systems that the agent works with. They are mounted before the first container needs them.
pub(crate) struct FileSystems {
    proc: OwnedFd,
    cgroups: ContainersCgroup,
}

impl FileSystems {
    /// Mounts them, and the shares at [`agent::SHARES_DIR`].
    pub(crate) fn mount() -> Result<Self, Error> {
        mount_shares()?;
        let proc = make_detached("proc")?;
        limits::set_kernel_parameters(proc.as_fd())?;
        let cgroups = ContainersCgroup::make(make_detached("cgroup2")?.as_fd())?;
        Ok(Self { proc, cgroups })
    }

    /// The guest's own `/proc`.
    pub(crate) fn proc(&self) -> BorrowedFd<'_> {
        self.proc.as_fd()
    }

    /// The cgroup that contains all containers' cgroups.
    pub(crate) fn cgroups(&self) -> &ContainersCgroup {
        &self.cgroups
    }
}

/// Descriptors of the agent that are needed to make a process.
#[derive(Clone, Copy)]
pub(crate) struct GuestFds<'a> {
    /// The guest's `/proc`.
    pub(crate) proc: BorrowedFd<'a>,
    /// A pidfd of the agent itself.
    pub(crate) agent: BorrowedFd<'a>,
}

/// Mounts `/proc` and `/sys` unless they are mounted. In a user namespace the kernel allows to mount a new instance
/// only where one is visible already.
pub(crate) fn mount_proc_and_sys() -> Result<(), Error> {
    for (kind, path, content) in [("proc", "/proc", "/proc/self"), ("sysfs", "/sys", "/sys/kernel")] {
        if rustix::fs::lstat(content).is_ok() {
            continue;
        }
        make_directory(path)?;
        let mount = make_mount(kind, kind, MountAttrFlags::empty()).map_err(Error::at(format!("make a {kind}")))?;
        move_mount(&mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(Error::on("mount on", path))?;
    }
    Ok(())
}

/// Mounts a file system for special files unless it is mounted. The initial root's file system does not support
/// id-mapped mounts.
pub(crate) fn mount_special() -> Result<(), Error> {
    mount_once("tmpfs", agent::SPECIAL_DIR).map(drop)
}

/// Mounts a file system of the guest at `path` unless one is mounted there. Returns whether it did.
pub(crate) fn mount_once(kind: &str, path: &str) -> Result<bool, Error> {
    files::make_directories(Path::new(path))?;
    let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::empty()).map_err(Error::on("examine", path))?;
    if stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(false);
    }
    let mount = make_mount(kind, kind, MountAttrFlags::empty()).map_err(Error::at(format!("make a {kind}")))?;
    move_mount(&mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(Error::on("mount on", path))?;
    Ok(true)
}

/// Makes a file system that is not attached to any path.
pub(crate) fn make_detached(kind: &str) -> Result<OwnedFd, Error> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    make_mount(kind, kind, attributes).map_err(Error::on("mount", kind))
}

/// Makes a mount that is not attached. `source` is the name that tools show.
fn make_mount(kind: &str, source: &str, attributes: MountAttrFlags) -> rustix::io::Result<OwnedFd> {
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
    let shares =
        make_mount("virtiofs", agent::SHARES_TAG, MountAttrFlags::empty()).map_err(Error::at("mount the shares"))?;
    move_mount(&shares, "", CWD, agent::SHARES_DIR, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(Error::on("mount the shares on", agent::SHARES_DIR))
}

/// Makes a directory whose parent exists.
pub(crate) fn make_directory(path: &str) -> Result<(), Error> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(Error::on("make directory", path)(error)),
    }
}
