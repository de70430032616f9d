//! File-system ids and capabilities of the calling thread.

use nix::unistd::{Gid, Uid};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use crate::fs::protocol::request::Owner;

impl Owner {
    /// Runs `change` while the calling thread has the owner's file-system ids (`fsuid`, `fsgid`). `EOVERFLOW` if the
    /// user namespace does not map one of them.
    pub(crate) fn with_fs_ids<T>(&self, change: impl FnOnce() -> T) -> Result<T, Errno> {
        let _assumed = self.assume_fs_ids()?;
        Ok(change())
    }

    fn assume_fs_ids(&self) -> Result<AssumedIds, Errno> {
        let assumed = AssumedIds { uid: self.uid != 0, gid: self.gid != 0 };
        // `setfsuid` and `setfsgid` return the previous id, and do not report an error. A second call returns the id
        // that is set.
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let check = |is_set| if is_set { Ok(()) } else { Err(Errno::OVERFLOW) };
        if assumed.gid {
            nix::unistd::setfsgid(gid);
            check(nix::unistd::setfsgid(gid) == gid)?;
        }
        if assumed.uid {
            nix::unistd::setfsuid(uid);
            check(nix::unistd::setfsuid(uid) == uid)?;
        }
        Ok(assumed)
    }
}

/// The calling thread's file-system ids of a user other than root. Dropping it restores root's ids.
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

/// The calling thread without `CAP_FSETID` in its effective set. Dropping it restores the capability.
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
            tracing::error!("cannot restore CAP_FSETID: {errno}");
        }
    }
}
