//! An inode that the guest knows.

use std::ffi::{CStr, CString};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags};
use rustix::io::Errno;

use super::shares::Share;
use crate::fs::kernel_view::kernel_view;

/// The identity of an inode. While a descriptor of an inode is held, the host does not reuse its number.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct InodeKey {
    share: u64,
    mount: u64,
    device: (u32, u32),
    ino: u64,
    /// Birth time of an inode whose descriptor is not held: see [`InodeKey::is_unpinned`].
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

    /// Whether the inode is on a mount that the host may want to unmount. For such an inode, the table does not hold a
    /// descriptor.
    pub(crate) fn is_unpinned(&self) -> bool {
        self.birth_time.is_some()
    }

    /// Whether the host's file system reports birth times, for an inode whose descriptor is not held.
    fn has_birth_time(&self) -> bool {
        self.birth_time.is_some_and(|time| time != (0, 0))
    }

    /// Whether both inodes are on the same mount. A mount has only one file system.
    pub(crate) fn same_mount_id(&self, other: &Self) -> bool {
        self.mount == other.mount
    }

    /// Whether both inodes are on the same mount of the same file system.
    pub(crate) fn same_mount(&self, other: &Self) -> bool {
        self.mount == other.mount && self.device == other.device
    }
}

/// The version of a file's contents, as far as the host's attributes show it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ContentVersion {
    /// Modification time: seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Change time: seconds and nanoseconds.
    pub(crate) ctime: (i64, u32),
    /// Size in bytes.
    pub(crate) size: u64,
}

/// An inode that the guest has looked up and not forgotten.
#[derive(Debug)]
pub(crate) struct Inode {
    /// The node id, which is never reused.
    pub(crate) id: u64,
    /// The identity on the host.
    pub(crate) key: InodeKey,
    /// The share through which the inode was found.
    pub(crate) share: Arc<Share>,
    /// The file type, which never changes.
    pub(crate) kind: FileType,
    /// Whether the inode is a directory on which another file system is mounted.
    pub(crate) submount: bool,
    /// Whether the inode is a directory on which the host has mounted a view of its kernel. The guest sees an empty
    /// directory, and nothing in it is ever in the table.
    pub(crate) kernel_view: bool,
    /// The version that the guest may have cached at its last `OPEN`.
    pub(crate) cached_version: Mutex<Option<ContentVersion>>,
    fd_source: FdSource,
    lookups: AtomicU64,
}

/// Where an inode's descriptor comes from.
#[derive(Debug)]
enum FdSource {
    /// The descriptor is held while the guest knows the inode.
    Held(Arc<OwnedFd>),
    /// The descriptor is opened by the inode's last known name when it is needed.
    ByName(Mutex<LastName>),
}

/// The last known name of an inode.
#[derive(Debug)]
pub(super) struct LastName {
    /// The node id of the directory.
    pub(super) parent: u64,
    /// The name in that directory.
    pub(super) name: CString,
    /// The descriptor, while a request or an open file uses it.
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
    /// The inode's current attributes.
    pub(crate) fn stat(&self) -> Result<Statx, Errno> {
        stat_fd(&self.fd)
    }
}

impl Inode {
    /// Stores the inode's last known name, unless its descriptor is held.
    pub(crate) fn set_last_name(&self, parent: u64, name: &CStr) {
        if let Some(mut last_name) = self.last_name() {
            if last_name.parent != parent || last_name.name.as_c_str() != name {
                (last_name.parent, last_name.name) = (parent, name.to_owned());
            }
        }
    }

    pub(super) fn last_name(&self) -> Option<MutexGuard<'_, LastName>> {
        match &self.fd_source {
            FdSource::Held(_) => None,
            FdSource::ByName(last_name) => Some(last_name.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// The descriptor, if it is open.
    pub(super) fn open_fd(&self) -> Option<Arc<OwnedFd>> {
        match &self.fd_source {
            FdSource::Held(fd) => Some(Arc::clone(fd)),
            FdSource::ByName(_) => self.last_name()?.fd.upgrade(),
        }
    }

    /// Lets other requests use the descriptor while it is open.
    pub(super) fn cache_fd(&self, fd: &Arc<OwnedFd>) {
        if let Some(mut last_name) = self.last_name() {
            last_name.fd = Arc::downgrade(fd);
        }
    }

    /// Whether `fd`, which has the inode's key, is on the file system on which the inode was found. The host may have
    /// unmounted that one, and given the numbers of its device and its mount to another. No view of a kernel reports
    /// birth times, so if there is one, it tells the two apart.
    pub(super) fn is_on_same_file_system(&self, fd: &OwnedFd) -> Result<bool, Errno> {
        Ok(self.key.has_birth_time() || kernel_view(fd)?.is_some() == self.kernel_view)
    }

    /// The FUSE lookup count: lookups minus forgets.
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

/// An inode that was found on the host. It may be in the table already.
pub(crate) struct FoundInode {
    /// The identity on the host.
    pub(crate) key: InodeKey,
    /// Its `O_PATH` descriptor.
    pub(crate) fd: OwnedFd,
    /// The file type.
    pub(crate) kind: FileType,
    /// The share through which the inode was found.
    pub(crate) share: Arc<Share>,
    /// Whether the inode is a directory on which another file system is mounted.
    pub(crate) submount: bool,
    /// Whether a view of the host's kernel is mounted on the directory.
    pub(crate) kernel_view: bool,
    /// The node id of the directory and the name in it, if the table must not hold the descriptor.
    pub(crate) last_name: Option<(u64, CString)>,
}

impl FoundInode {
    /// The table's entry for this inode under node id `id`, with the lookup count `lookups`.
    pub(super) fn into_inode(self, id: u64, lookups: u64) -> InodeFd {
        let Self { key, fd, kind, share, submount, kernel_view, last_name } = self;
        let fd = Arc::new(fd);
        let fd_source = match last_name {
            None => FdSource::Held(Arc::clone(&fd)),
            Some((parent, name)) => FdSource::ByName(Mutex::new(LastName { parent, name, fd: Arc::downgrade(&fd) })),
        };
        let lookups = AtomicU64::new(lookups);
        let cached_version = Mutex::default();
        let inode = Inode { id, key, share, kind, submount, kernel_view, cached_version, fd_source, lookups };
        InodeFd { inode: Arc::new(inode), fd }
    }
}

/// The attributes that are requested of the host.
const STATX_MASK: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME).union(StatxFlags::MNT_ID);

/// The attributes of the file that `fd` refers to.
pub(crate) fn stat_fd(fd: impl AsFd) -> Result<Statx, Errno> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT, STATX_MASK)
}

/// The attributes of the entry `name` of `directory`. Does not follow a symbolic link.
pub(crate) fn stat_entry(directory: impl AsFd, name: &std::ffi::CStr) -> Result<Statx, Errno> {
    rustix::fs::statx(directory, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, STATX_MASK)
}

/// The file type in these attributes.
pub(crate) fn file_type(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}
