//! Mounts of the host for a VMM. The VMM gets clones of them, from whose root `..` leads nowhere.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsmount, fsopen,
    move_mount, open_tree,
};

use crate::host::process::HostProcess;

/// What the VMM does not need on any mount: what its containers may execute, and as whom, the guest's mounts say.
const RESTRICTIONS: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;

/// Clones the mount at `source`, as a bind mount does, with the mounts below it if `recursive` is set. Nothing can be executed on the
/// clone, and no device can be opened. Later mounts of the host do not appear in it.
///
/// # Errors
/// The caller may not mount.
pub(crate) fn clone(source: BorrowedFd, recursive: bool) -> io::Result<OwnedFd> {
    clone_with(source, recursive, libc::MS_PRIVATE)
}

fn clone_with(source: BorrowedFd, recursive: bool, propagation: libc::c_ulong) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mut recursion = 0;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
        recursion = libc::AT_RECURSIVE;
    }
    let tree = open_tree(source, "", flags)?;
    let attributes = libc::mount_attr { attr_set: RESTRICTIONS, attr_clr: 0, propagation, userns_fd: 0 };
    // SAFETY: the path is a string with a NUL at its end, and the kernel reads `size_of_val` bytes of live attributes.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursion,
            &raw const attributes,
            size_of_val(&attributes),
        )
    })?;
    Ok(tree)
}

/// Clones the mounts at `sources` with those below them, and mounts the clones in the mount namespace of `vmm`, where later mounts and
/// unmounts of the host follow. Returns the clones; `None` if the VMM has no mount namespace of its own, and so sees the host's.
///
/// # Errors
/// The caller may not mount.
pub(crate) fn clone_into(vmm: HostProcess, sources: &[BorrowedFd]) -> io::Result<Option<Vec<OwnedFd>>> {
    let namespace = File::open(format!("/proc/{}/ns/mnt", vmm.pid))?;
    if fs::metadata("/proc/self/ns/mnt")?.ino() == namespace.metadata()?.ino() {
        return Ok(None);
    }
    let clones: Vec<_> =
        sources.iter().map(|source| clone_with(*source, true, libc::MS_SLAVE)).collect::<Result<_, _>>()?;
    // SAFETY: this process has one thread, so the child may run any code. It ends with `_exit`.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let errno = attach(&namespace, &clones).err().map_or(0, |errno| errno as i32);
            // SAFETY: `_exit` ends the child without running exit handlers.
            unsafe { libc::_exit(errno) }
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(Some(clones)),
            WaitStatus::Exited(_, errno) => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(io::ErrorKind::Interrupted.into()),
        },
    }
}

/// Mounts the trees in a mount namespace, each on an entry of a new file system. That is mounted over the namespace's root directory;
/// the process in the namespace has a root directory below it. (Another tree's root would not do: a directory that was removed on the
/// host takes no mount.)
fn attach(namespace: &File, trees: &[OwnedFd]) -> Result<(), Errno> {
    setns(namespace, CloneFlags::CLONE_NEWNS)?;
    attach_here(trees).map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}

fn attach_here(trees: &[OwnedFd]) -> rustix::io::Result<()> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let places = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(&places, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    for (number, tree) in trees.iter().enumerate() {
        let name = number.to_string();
        match FileType::from_raw_mode(rustix::fs::fstat(tree)?.st_mode) {
            FileType::Directory => rustix::fs::mkdirat(&places, name.as_str(), Mode::RWXU)?,
            _ => drop(rustix::fs::openat(&places, name.as_str(), OFlags::CREATE | OFlags::CLOEXEC, Mode::RUSR)?),
        }
        move_mount(tree, "", &places, name.as_str(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
    Ok(())
}
