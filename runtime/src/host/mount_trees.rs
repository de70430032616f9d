//! Mounts of the host for a VMM. The VMM gets clones of them, from whose root `..` leads nowhere.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

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

/// Time for the writers of a mount that becomes read-only to end: the guest closes its files without waiting for the file server.
const WRITERS_TIMEOUT: Duration = Duration::from_secs(2);

/// Time between two attempts to make a mount read-only.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// A mount to clone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    /// `O_PATH` descriptor of its root.
    pub(crate) root: BorrowedFd<'a>,
    /// Whether nothing can be written on the clone.
    pub(crate) read_only: bool,
}

/// Clones the mount at `source`, as a bind mount does, with the mounts below it if `recursive` is set. Nothing can be executed on the
/// clone, and no device can be opened. Later mounts of the host do not appear in it.
///
/// # Errors
/// The caller may not mount.
pub(crate) fn clone(source: Source, recursive: bool) -> io::Result<OwnedFd> {
    clone_with(source, recursive, libc::MS_PRIVATE)
}

fn clone_with(source: Source, recursive: bool, propagation: libc::c_ulong) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = open_tree(source.root, "", flags)?;
    let read_only = if source.read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    set_attributes(tree.as_fd(), recursive, RESTRICTIONS | read_only, propagation)?;
    Ok(tree)
}

/// Sets attributes of the mount at `tree`, and of those below it if `recursive` is set.
fn set_attributes(tree: BorrowedFd, recursive: bool, set: u64, propagation: libc::c_ulong) -> Result<(), Errno> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation, userns_fd: 0 };
    // SAFETY: the path is a string with a NUL at its end, and the kernel reads `size_of_val` bytes of live attributes.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 },
            &raw const attributes,
            size_of_val(&attributes),
        )
    })
    .map(drop)
}

/// Clones the mounts at `sources` with those below them, and mounts the clones in the mount namespace of `vmm`, where later mounts and
/// unmounts of the host follow. Returns the clones; `None` if the VMM has no mount namespace of its own, and so sees the host's.
///
/// # Errors
/// The caller may not mount.
pub(crate) fn clone_into(vmm: HostProcess, sources: &[Source]) -> io::Result<Option<Vec<OwnedFd>>> {
    let Some(namespace) = own_namespace(vmm)? else { return Ok(None) };
    let clones: Vec<_> =
        sources.iter().map(|source| clone_with(*source, true, libc::MS_SLAVE)).collect::<Result<_, _>>()?;
    run_in(&namespace, || attach_here(&clones).map_err(|errno| Errno::from_raw(errno.raw_os_error())))?;
    Ok(Some(clones))
}

/// Makes a clone in the mount namespace of `vmm` read-only, with the mounts below it. Has no effect if the VMM has no mount namespace of
/// its own: then there is no clone.
///
/// # Errors
/// Files on the mount stay open for writing, or the caller may not mount.
pub(crate) fn make_read_only(vmm: HostProcess, clone: BorrowedFd) -> io::Result<()> {
    let Some(namespace) = own_namespace(vmm)? else { return Ok(()) };
    let deadline = Instant::now() + WRITERS_TIMEOUT;
    loop {
        // Each attempt has a child of its own, which keeps open what this process has open meanwhile.
        match run_in(&namespace, || set_attributes(clone, true, libc::MOUNT_ATTR_RDONLY, 0)) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                thread::sleep(RETRY_INTERVAL);
            }
            result => return result,
        }
    }
}

/// The mount namespace of `vmm`; `None` if it is that of this process.
fn own_namespace(vmm: HostProcess) -> io::Result<Option<File>> {
    let namespace = File::open(format!("/proc/{}/ns/mnt", vmm.pid))?;
    let is_own = fs::metadata("/proc/self/ns/mnt")?.ino() != namespace.metadata()?.ino();
    Ok(is_own.then_some(namespace))
}

/// Runs `work` in a child process in a mount namespace.
fn run_in(namespace: &File, work: impl FnOnce() -> Result<(), Errno>) -> io::Result<()> {
    // SAFETY: this process has one thread, so the child may run any code. It ends with `_exit`.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let done = setns(namespace, CloneFlags::CLONE_NEWNS).and_then(|()| work());
            // SAFETY: `_exit` ends the child without running exit handlers.
            unsafe { libc::_exit(done.err().map_or(0, |errno| errno as i32)) }
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, errno) => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(io::ErrorKind::Interrupted.into()),
        },
    }
}

/// Mounts the trees in the mount namespace of this process, each on an entry of a new file system. That is mounted over the namespace's root directory;
/// the process in the namespace has a root directory below it. (Another tree's root would not do: a directory that was removed on the
/// host takes no mount.)
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

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use rustix::fs::{mkdirat, open};

    use super::*;

    fn open_path(path: &std::path::Path) -> OwnedFd {
        open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    #[test]
    fn nothing_can_be_written_on_a_read_only_clone() {
        let directory = tempfile::tempdir().unwrap();
        let root = open_path(directory.path());
        let clone_of = |read_only| clone(Source { root: root.as_fd(), read_only }, false).unwrap();
        let make = |tree: &OwnedFd, name: &str| mkdirat(tree, name, Mode::RWXU);
        make(&clone_of(false), "made").unwrap();
        assert_eq!(make(&clone_of(true), "refused"), Err(rustix::io::Errno::ROFS));
        assert!(directory.path().join("made").exists(), "the host's mount stays writable");
        std::fs::write(directory.path().join("file"), "").unwrap();
    }

    #[test]
    fn a_clone_becomes_read_only_when_its_writers_have_ended() {
        let directory = tempfile::tempdir().unwrap();
        let root = open_path(directory.path());
        // Ends when its standard input is closed.
        let mut process = Command::new("unshare").args(["--mount", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
        let vmm = HostProcess::of(process.id().cast_signed()).unwrap();
        while own_namespace(vmm).unwrap().is_none() {
            thread::sleep(RETRY_INTERVAL);
        }
        let source = Source { root: root.as_fd(), read_only: false };
        let clones = clone_into(vmm, &[source, Source { read_only: true, ..source }]).unwrap().unwrap();
        let make = |tree: &OwnedFd, name: &str| mkdirat(tree, name, Mode::RWXU);
        assert_eq!(make(&clones[1], "refused"), Err(rustix::io::Errno::ROFS));
        let writer = rustix::fs::openat(&clones[0], "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
        let closing = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            drop(writer);
        });
        make(&clones[0], "made").unwrap();
        make_read_only(vmm, clones[0].as_fd()).unwrap();
        assert_eq!(make(&clones[0], "refused"), Err(rustix::io::Errno::ROFS));
        assert!(directory.path().join("made").exists());
        closing.join().unwrap();
        drop(process.stdin.take());
        process.wait().unwrap();
    }
}
