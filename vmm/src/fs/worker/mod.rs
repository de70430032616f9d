//! What a thread must be before it may serve requests, and whom it acts as.
//!
//! A file is created with the guest process's user and group, and with its umask where no default ACL says otherwise.
//! The kernel does that right for a thread whose file-system ids and umask are the guest's, so a worker wears them for
//! the moment. It keeps its capabilities meanwhile (`SECBIT_NO_SETUID_FIXUP`): the guest kernel has already checked
//! permissions, with all of the caller's groups and capabilities, which the host does not know.
//!
//! In a user namespace all this goes for the ids that it has. A file that would belong to another one is not made.

mod credentials;
pub(super) mod proc_fds;

use std::marker::PhantomData;

use nix::sched::CloneFlags;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::thread::CapabilitiesSecureBits;

use self::credentials::{DroppedFsetid, drop_groups};
use self::proc_fds::ProcFds;
use crate::fs::error::FsError;
use crate::fs::protocol::request::Owner;

/// A thread that may serve requests. Neither sent nor shared: it *is* the thread's credentials and working directory.
#[derive(Debug)]
pub struct Worker {
    umask: Mode,
    /// Space for the arguments of the request being served.
    pub(crate) args: Vec<u8>,
    /// Space for what is read from the host before it is known to fit the reply.
    pub(crate) scratch: Vec<u8>,
    thread: PhantomData<*const ()>,
}

impl Worker {
    /// Makes the calling thread a worker, for the rest of its life: its umask, working directory, supplementary groups
    /// and secure bits become its own. The working directory is the process's descriptors, so that the *name* `"7"`
    /// is what descriptor 7 stands for ([`fd_name`]).
    ///
    /// # Errors
    /// The thread lacks the privilege.
    pub fn adopt(proc_fds: &ProcFds) -> Result<Self, FsError> {
        let system = |what, errno: std::io::Error| FsError::System(what, errno);
        nix::sched::unshare(CloneFlags::CLONE_FS)
            .map_err(|errno| system("give a thread its own umask", errno.into()))?;
        rustix::process::fchdir(proc_fds).map_err(|errno| system("enter /proc/self/fd", errno.into()))?;
        rustix::thread::set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)
            .map_err(|errno| system("keep capabilities across users", errno.into()))?;
        drop_groups().map_err(|errno| system("drop supplementary groups", errno.into()))?;
        rustix::process::umask(Mode::empty());
        Ok(Self { umask: Mode::empty(), args: Vec::new(), scratch: Vec::new(), thread: PhantomData })
    }

    /// Runs `create` as `owner`, with `umask`.
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

    /// Runs `change` as someone without `CAP_FSETID`, where `kill` says so: the kernel then clears setuid and setgid.
    pub(crate) fn without_fsetid<T>(&mut self, kill: bool, change: impl FnOnce() -> T) -> Result<T, Errno> {
        let _dropped = if kill { Some(DroppedFsetid::new()?) } else { None };
        Ok(change())
    }
}
