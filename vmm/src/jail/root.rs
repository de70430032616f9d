//! The root directory of the process: empty and read-only.

use std::os::fd::OwnedFd;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, unmount,
};

use super::JailError;

/// Replaces the root directory by an empty, read-only file system, and unmounts everything else. The process has a mount
/// namespace of its own. Descriptors stay open, and so do the mounts that they are on.
pub(super) fn change() -> Result<(), JailError> {
    // The kernel has done this if the mount namespace belongs to another user namespace than the host's.
    let recursive = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", recursive).map_err(JailError::at("separate its mounts from the host's"))?;
    let root = empty_file_system().map_err(JailError::at("make an empty file system"))?;
    enter(&root).map_err(JailError::at("change its root directory"))
}

fn empty_file_system() -> Result<OwnedFd, Errno> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("size", "4k"), ("nr_inodes", "2"), ("mode", "0555")] {
        fsconfig_set_string(&context, key, value)?;
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Mounts `root` on the root directory and pivots to it. With the same directory for both, the old root is mounted on the new one
/// (`pivot_root(2)`), from where it is unmounted.
fn enter(root: &OwnedFd) -> Result<(), Errno> {
    move_mount(root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}
