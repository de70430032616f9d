//! File-system ids and capabilities of the calling thread.

use nix::unistd::{Gid, Uid};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use crate::fs::protocol::request::Owner;

impl Owner {
    /// Runs `change` with the owner's file-system ids. `EOVERFLOW`, as for any file of an id that cannot be, where the user
    /// namespace lacks one of them.
    pub(crate) fn with_fs_ids<T>(&self, change: impl FnOnce() -> T) -> Result<T, Errno> {
        let _assumed = self.assume_fs_ids()?;
        Ok(change())
    }

    fn assume_fs_ids(&self) -> Result<AssumedIds, Errno> {
        let assumed = AssumedIds { uid: self.uid != 0, gid: self.gid != 0 };
        // The kernel tells which id was assumed before, and nothing of one it does not take.
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let taken = |second| if second { Ok(()) } else { Err(Errno::OVERFLOW) };
        if assumed.gid {
            nix::unistd::setfsgid(gid);
            taken(nix::unistd::setfsgid(gid) == gid)?;
        }
        if assumed.uid {
            nix::unistd::setfsuid(uid);
            taken(nix::unistd::setfsuid(uid) == uid)?;
        }
        Ok(assumed)
    }
}

/// File-system ids that are not root's, until dropped.
struct AssumedIds {
    uid: bool,
    gid: bool,
}

impl Drop for AssumedIds {
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
pub(super) struct DroppedFsetid(rustix::thread::CapabilitySets);

impl DroppedFsetid {
    pub(super) fn new() -> Result<Self, Errno> {
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
pub(super) fn drop_groups() -> Result<(), Errno> {
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
