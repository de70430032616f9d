//! What a thread must be before it may serve requests, and whom it acts as.
//!
//! A file is created with the guest process's user and group, and with its umask where no default ACL says otherwise.
//! The kernel does that right for a thread whose file-system ids and umask are the guest's, so a worker wears them for
//! the moment. It keeps its capabilities meanwhile (`SECBIT_NO_SETUID_FIXUP`): the guest kernel has already checked
//! permissions, with all of the caller's groups and capabilities, which the host does not know.
//!
//! In a user namespace all this goes for the ids that it has. A file that would belong to another one is not made.

use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::sched::CloneFlags;
use nix::unistd::{Gid, Uid};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::path::DecInt;
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet};

use super::FsError;

/// The process's descriptors as a directory. Opened once; it still serves when `/proc` is out of reach.
#[derive(Clone, Debug)]
pub struct Descriptors(Arc<OwnedFd>);

impl AsFd for Descriptors {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Descriptors {
    /// Opens the directory.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn open() -> Result<Self, FsError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open("/proc/self/fd", flags, Mode::empty());
        directory.map(|fd| Self(Arc::new(fd))).map_err(|errno| FsError::System("open /proc/self/fd", errno.into()))
    }

    /// Where descriptor `fd` leads to, as the host names it.
    pub(super) fn target(&self, fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
        rustix::fs::readlinkat(&self.0, DecInt::from_fd(fd), Vec::new()).map(std::ffi::CString::into_bytes)
    }
}

/// A thread that may serve requests. Neither sent nor shared: it *is* the thread's credentials and working directory.
#[derive(Debug)]
pub struct Worker {
    umask: Mode,
    /// Space for the arguments of the request being served.
    pub(super) args: Vec<u8>,
    /// Space for what is read from the host before it is known to fit the reply.
    pub(super) scratch: Vec<u8>,
    thread: PhantomData<*const ()>,
}

impl Worker {
    /// Makes the calling thread a worker, for the rest of its life: its umask, working directory, supplementary groups
    /// and secure bits become its own. The working directory is the process's descriptors, so that the *name* `"7"`
    /// is what descriptor 7 stands for ([`name_of`]).
    ///
    /// # Errors
    /// The thread lacks the privilege.
    pub fn adopt(descriptors: &Descriptors) -> Result<Self, FsError> {
        let system = |what, errno: std::io::Error| FsError::System(what, errno);
        nix::sched::unshare(CloneFlags::CLONE_FS)
            .map_err(|errno| system("give a thread its own umask", errno.into()))?;
        rustix::process::fchdir(&descriptors.0).map_err(|errno| system("enter /proc/self/fd", errno.into()))?;
        rustix::thread::set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)
            .map_err(|errno| system("keep capabilities across users", errno.into()))?;
        drop_groups().map_err(|errno| system("drop supplementary groups", errno.into()))?;
        rustix::process::umask(Mode::empty());
        Ok(Self { umask: Mode::empty(), args: Vec::new(), scratch: Vec::new(), thread: PhantomData })
    }

    /// Runs `create` as `owner`, with `umask`.
    pub(super) fn create_as<T>(
        &mut self,
        owner: &Owner,
        umask: u32,
        create: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let umask = Mode::from_raw_mode(umask & 0o777);
        if umask != self.umask {
            rustix::process::umask(umask);
            self.umask = umask;
        }
        owner.act(create)?
    }

    /// Runs `change` as someone without `CAP_FSETID`, where `kill` says so: the kernel then clears setuid and setgid.
    pub(super) fn without_fsetid<T>(&mut self, kill: bool, change: impl FnOnce() -> T) -> Result<T, Errno> {
        let _dropped = if kill { Some(DroppedFsetid::drop_it()?) } else { None };
        Ok(change())
    }
}

/// The name of `fd` in [`Descriptors`], a worker's working directory.
pub(super) fn name_of(fd: &impl AsFd) -> DecInt {
    DecInt::from_fd(fd.as_fd())
}

/// Who a new file shall belong to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Owner {
    /// The user.
    pub(super) uid: u32,
    /// The group, where the parent directory does not hand down its own.
    pub(super) gid: u32,
    /// The parent directory's group, where the caller is in it.
    pub(super) supplementary: Option<u32>,
}

impl Owner {
    /// Whether `gid` is one of the owner's groups.
    pub(super) fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.supplementary == Some(gid)
    }

    /// Runs `change` with the owner's file-system ids. `EOVERFLOW`, as for any file of an id that cannot be, where the user
    /// namespace lacks one of them.
    pub(super) fn act<T>(&self, change: impl FnOnce() -> T) -> Result<T, Errno> {
        let _worn = self.wear()?;
        Ok(change())
    }

    fn wear(&self) -> Result<Worn, Errno> {
        let worn = Worn { uid: self.uid != 0, gid: self.gid != 0 };
        // The kernel tells which id was worn before, and nothing of one it does not take.
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let taken = |second| if second { Ok(()) } else { Err(Errno::OVERFLOW) };
        if worn.gid {
            nix::unistd::setfsgid(gid);
            taken(nix::unistd::setfsgid(gid) == gid)?;
        }
        if worn.uid {
            nix::unistd::setfsuid(uid);
            taken(nix::unistd::setfsuid(uid) == uid)?;
        }
        Ok(worn)
    }
}

/// File-system ids that are not root's, until dropped.
struct Worn {
    uid: bool,
    gid: bool,
}

impl Drop for Worn {
    fn drop(&mut self) {
        if self.uid {
            nix::unistd::setfsuid(Uid::from_raw(0));
        }
        if self.gid {
            nix::unistd::setfsgid(Gid::from_raw(0));
        }
    }
}

/// `CAP_FSETID` not effective, until dropped.
struct DroppedFsetid(rustix::thread::CapabilitySets);

impl DroppedFsetid {
    fn drop_it() -> Result<Self, Errno> {
        let before = rustix::thread::capabilities(None)?;
        let mut without = before;
        without.effective.remove(CapabilitySet::FSETID);
        rustix::thread::set_capabilities(None, without)?;
        Ok(Self(before))
    }
}

impl Drop for DroppedFsetid {
    fn drop(&mut self) {
        if let Err(errno) = rustix::thread::set_capabilities(None, self.0) {
            tracing::error!("cannot take CAP_FSETID back: {errno}");
        }
    }
}

/// Leaves the calling thread without supplementary groups. In a user namespace that a user has made none may be given up, since
/// what is closed to a group would be open then; who made it is in them as with every program of theirs.
fn drop_groups() -> Result<(), Errno> {
    match set_groups(&[]) {
        Err(Errno::PERM) if std::fs::read("/proc/self/setgroups").is_ok_and(|word| word == b"deny\n") => Ok(()),
        result => result,
    }
}

/// Sets the calling thread's supplementary groups, and no other thread's, which the C library's function would.
fn set_groups(groups: &[libc::gid_t]) -> Result<(), Errno> {
    // SAFETY: the kernel reads `groups.len()` ids from a live slice and changes only this thread's credentials.
    let result = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::PERM))
}
