//! An inode that the guest knows.

use std::ffi::{CStr, CString};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags};
use rustix::io::Errno;

use super::shares::Share;

/// What makes an inode the same inode. While its descriptor is held, the host gives its number to no other.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct InodeKey {
    share: u64,
    mount: u64,
    device: (u32, u32),
    ino: u64,
    /// Time of birth where no descriptor is held: see [`InodeKey::is_unpinned`].
    birth_time: Option<(i64, u32)>,
}

impl InodeKey {
    /// The key of an inode of `share` with these attributes.
    pub(crate) fn new(share: &Share, stat: &Statx) -> Self {
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        let is_unpinned = share.options.follows_host && stat.stx_mnt_id != share.mount;
        let birth_time = is_unpinned.then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec));
        Self { share: share.id, mount: stat.stx_mnt_id, device, ino: stat.stx_ino, birth_time }
    }

    /// Whether it lies on a mount that the host may want to unmount, so that no descriptor of it is held for the guest's
    /// knowing it.
    pub(crate) fn is_unpinned(&self) -> bool {
        self.birth_time.is_some()
    }

    /// Whether both lie in the same mount of the same file system.
    pub(crate) fn same_mount(&self, other: &Self) -> bool {
        self.mount == other.mount && self.device == other.device
    }
}

/// The state of a file's contents, as far as the host tells it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ContentVersion {
    /// Modification time: seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Change time: seconds and nanoseconds.
    pub(crate) ctime: (i64, u32),
    /// Size in bytes.
    pub(crate) size: u64,
}

/// An inode the guest knows.
#[derive(Debug)]
pub(crate) struct Inode {
    /// Its node id, never used again.
    pub(crate) id: u64,
    /// What it is on the host.
    pub(crate) key: InodeKey,
    /// The share it was reached through.
    pub(crate) share: Arc<Share>,
    /// Its type, which no inode ever changes.
    pub(crate) kind: FileType,
    /// Whether it is a directory on which another file system starts.
    pub(crate) submount: bool,
    /// What the guest may have cached at its last open.
    pub(crate) cached: Mutex<Option<ContentVersion>>,
    fd_source: FdSource,
    lookups: AtomicU64,
}

/// How to come by an inode's descriptor.
#[derive(Debug)]
enum FdSource {
    /// It is held as long as the guest knows the inode.
    Held(Arc<OwnedFd>),
    /// It is opened where the inode was seen last, each time it is needed.
    ByName(Mutex<LastName>),
}

/// Where an inode was seen last.
#[derive(Debug)]
pub(super) struct LastName {
    /// Inode id of the directory.
    pub(super) parent: u64,
    /// Its name there.
    pub(super) name: CString,
    /// Its descriptor, while somebody uses it: at the latest until the guest has closed what it opened.
    pub(super) fd: Weak<OwnedFd>,
}

/// An inode with its `O_PATH` descriptor.
#[derive(Clone, Debug)]
pub(crate) struct InodeFd {
    pub(crate) inode: Arc<Inode>,
    pub(super) fd: Arc<OwnedFd>,
}

impl Deref for InodeFd {
    type Target = Inode;

    fn deref(&self) -> &Inode {
        &self.inode
    }
}

impl AsFd for InodeFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl InodeFd {
    /// Its attributes now.
    pub(crate) fn stat(&self) -> Result<Statx, Errno> {
        stat_fd(&self.fd)
    }
}

impl Inode {
    /// Notes where it was seen.
    pub(crate) fn set_last_name(&self, parent: u64, name: &CStr) {
        if let Some(mut seen) = self.last_name() {
            if seen.parent != parent || seen.name.as_c_str() != name {
                (seen.parent, seen.name) = (parent, name.to_owned());
            }
        }
    }

    pub(super) fn last_name(&self) -> Option<MutexGuard<'_, LastName>> {
        match &self.fd_source {
            FdSource::Held(_) => None,
            FdSource::ByName(seen) => Some(seen.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// Its descriptor, if there is one now.
    pub(super) fn open_fd(&self) -> Option<Arc<OwnedFd>> {
        match &self.fd_source {
            FdSource::Held(fd) => Some(Arc::clone(fd)),
            FdSource::ByName(_) => self.last_name()?.fd.upgrade(),
        }
    }

    /// Lets others use the descriptor while somebody does.
    pub(super) fn cache_fd(&self, fd: &Arc<OwnedFd>) {
        if let Some(mut seen) = self.last_name() {
            seen.fd = Arc::downgrade(fd);
        }
    }

    /// How often the guest looked it up and has not forgotten.
    pub(crate) fn lookups(&self) -> u64 {
        self.lookups.load(Ordering::Relaxed)
    }

    pub(super) fn add_lookup(&self) {
        self.lookups.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn forget(&self, count: u64) -> bool {
        let subtract = |lookups: u64| Some(lookups.saturating_sub(count));
        let before = self.lookups.fetch_update(Ordering::AcqRel, Ordering::Acquire, subtract);
        before.is_ok_and(|before| before <= count)
    }
}

/// An inode found on the host that may or may not be in the table.
pub(crate) struct FoundInode {
    /// What it is.
    pub(crate) key: InodeKey,
    /// Its `O_PATH` descriptor.
    pub(crate) fd: OwnedFd,
    /// Its type.
    pub(crate) kind: FileType,
    /// The share it was reached through.
    pub(crate) share: Arc<Share>,
    /// Whether it is a directory on which another file system starts.
    pub(crate) submount: bool,
    /// Inode id of the directory and name where it was found, if its descriptor is not to be held.
    pub(crate) seen: Option<(u64, CString)>,
}

impl FoundInode {
    /// The inode under node id `id`, with its descriptor.
    pub(super) fn into_inode(self, id: u64, lookups: u64) -> InodeFd {
        let Self { key, fd, kind, share, submount, seen } = self;
        let fd = Arc::new(fd);
        let fd_source = match seen {
            None => FdSource::Held(Arc::clone(&fd)),
            Some((parent, name)) => FdSource::ByName(Mutex::new(LastName { parent, name, fd: Arc::downgrade(&fd) })),
        };
        let lookups = AtomicU64::new(lookups);
        let inode = Arc::new(Inode { id, key, share, kind, submount, cached: Mutex::default(), fd_source, lookups });
        InodeFd { inode, fd }
    }
}

/// What attributes are asked of the host.
const STATX_MASK: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME).union(StatxFlags::MNT_ID);

/// The attributes of what `fd` stands for.
pub(crate) fn stat_fd(fd: impl AsFd) -> Result<Statx, Errno> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT, STATX_MASK)
}

/// The attributes of the entry `name` of `directory`, of a symbolic link itself.
pub(crate) fn stat_entry(directory: impl AsFd, name: &std::ffi::CStr) -> Result<Statx, Errno> {
    rustix::fs::statx(directory, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, STATX_MASK)
}

/// The type of an inode with these attributes.
pub(crate) fn file_type(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}
