//! The state of a thread that serves requests.
//!
//! A new file belongs to the guest process's user and group, and its umask applies unless the parent directory has a
//! default ACL. To get this from the host's kernel, a worker assumes the caller's file-system ids (`fsuid`, `fsgid`)
//! and umask while it creates the file. It keeps its capabilities meanwhile (`SECBIT_NO_SETUID_FIXUP`): the guest's
//! kernel has already checked permissions, with all groups and capabilities of the caller, which the host does not
//! know.
//!
//! In a user namespace, this works for the ids that the namespace maps. For other ids, the file is not created.

mod credentials;
pub(super) mod proc_fds;

use std::marker::PhantomData;

use nix::sched::CloneFlags;
use rustix::fs::Mode;
use rustix::io::Errno;

use self::credentials::DroppedFsetid;
use self::proc_fds::ProcFds;
use crate::fs::error::FsError;
use crate::fs::protocol::request::Owner;
use crate::jail::assume_files_owner;
use crate::jail::seccomp::{self, ThreadClass};

/// A thread that may serve requests. It is neither `Send` nor `Sync`, because it represents the thread's credentials
/// and working directory.
#[derive(Debug)]
pub struct Worker {
    umask: Mode,
    /// Buffer for the arguments of the current request.
    pub(crate) args: Vec<u8>,
    /// Buffer for data from the host, before it is known to fit the reply.
    pub(crate) scratch: Vec<u8>,
    thread: PhantomData<*const ()>,
}

impl Worker {
    /// Makes the calling thread a worker for the rest of its life. The thread gets its own umask, working directory,
    /// file-system ids and system call filter. The working directory becomes `/proc/self/fd`, so that the relative path
    /// `"7"` refers to the file behind descriptor 7 (`fd_name`).
    ///
    /// # Errors
    /// The thread lacks a privilege.
    pub fn for_current_thread(proc_fds: &ProcFds) -> Result<Self, FsError> {
        let system = |what, errno: std::io::Error| FsError::System(what, errno);
        nix::sched::unshare(CloneFlags::CLONE_FS)
            .map_err(|errno| system("give a thread its own umask", errno.into()))?;
        rustix::process::fchdir(proc_fds).map_err(|errno| system("enter /proc/self/fd", errno.into()))?;
        assume_files_owner().map_err(|error| system("keep capabilities across users", error))?;
        rustix::process::umask(Mode::empty());
        seccomp::confine(ThreadClass::FileServer)
            .map_err(|error| system("limit the system calls of a thread", error))?;
        Ok(Self { umask: Mode::empty(), args: Vec::new(), scratch: Vec::new(), thread: PhantomData })
    }

    /// Runs `create` with the owner's file-system ids and with `umask`.
    pub(crate) fn create_as<T>(
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
        owner.with_fs_ids(create)?
    }

    /// Runs `change`, without `CAP_FSETID` if `kill` is set. The host's kernel then clears setuid and setgid.
    pub(crate) fn without_fsetid<T>(&mut self, kill: bool, change: impl FnOnce() -> T) -> Result<T, Errno> {
        let _dropped = if kill { Some(DroppedFsetid::new()?) } else { None };
        Ok(change())
    }
}
