//! The inodes the guest knows: node id ↔ `O_PATH` descriptor.
//!
//! A descriptor keeps the mount that it is on from being unmounted. So none is held on mounts that the host has below a share that
//! follows it: there an inode is known by where it was seen last, and opened there when it is needed. What the guest has open, it
//! holds.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::shares::Share;
use super::wire::ROOT_ID;

/// Directories on the way from an inode to one whose descriptor is held, at most.
const MAX_DEPTH: usize = 1024;

/// What makes an inode the same inode. While its descriptor is held, the host gives its number to no other.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Key {
    share: u64,
    mount: u64,
    device: (u32, u32),
    ino: u64,
    /// Time of birth where no descriptor is held: see [`Key::may_go`].
    born: Option<(i64, u32)>,
}

impl Key {
    /// The key of an inode of `share` with these attributes.
    pub(super) fn new(share: &Share, stat: &Statx) -> Self {
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        let may_go = share.options.follows_host && stat.stx_mnt_id != share.mount;
        let born = may_go.then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec));
        Self { share: share.id, mount: stat.stx_mnt_id, device, ino: stat.stx_ino, born }
    }

    /// Whether it lies on a mount that the host may want to unmount, so that no descriptor of it is held for the guest's
    /// knowing it.
    pub(super) fn may_go(&self) -> bool {
        self.born.is_some()
    }

    /// Whether both lie in the same mount of the same file system.
    pub(super) fn same_mount(&self, other: &Self) -> bool {
        self.mount == other.mount && self.device == other.device
    }
}

/// The state of a file's contents, as far as the host tells it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Version {
    /// Modification time: seconds and nanoseconds.
    pub(super) mtime: (i64, u32),
    /// Change time: seconds and nanoseconds.
    pub(super) ctime: (i64, u32),
    /// Size in bytes.
    pub(super) size: u64,
}

/// An inode the guest knows.
#[derive(Debug)]
pub(super) struct Node {
    /// Its node id, never used again.
    pub(super) id: u64,
    /// What it is on the host.
    pub(super) key: Key,
    /// The share it was reached through.
    pub(super) share: Arc<Share>,
    /// Its type, which no inode ever changes.
    pub(super) kind: FileType,
    /// Whether it is a directory on which another file system starts.
    pub(super) submount: bool,
    /// What the guest may have cached at its last open.
    pub(super) cached: Mutex<Option<Version>>,
    reach: Reach,
    lookups: AtomicU64,
}

/// How to come by an inode's descriptor.
#[derive(Debug)]
enum Reach {
    /// It is held as long as the guest knows the inode.
    Held(Arc<OwnedFd>),
    /// It is opened where the inode was seen last, each time it is needed.
    Seen(Mutex<Seen>),
}

/// Where an inode was seen last.
#[derive(Debug)]
struct Seen {
    /// Node id of the directory.
    parent: u64,
    /// Its name there.
    name: CString,
    /// Its descriptor, while somebody uses it: at the latest until the guest has closed what it opened.
    fd: Weak<OwnedFd>,
}

/// An inode with its `O_PATH` descriptor.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) node: Arc<Node>,
    fd: Arc<OwnedFd>,
}

impl Deref for Place {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Place {
    /// Its attributes now.
    pub(super) fn stat(&self) -> Result<Statx, Errno> {
        stat_fd(&self.fd)
    }
}

impl Node {
    /// Notes where it was seen.
    pub(super) fn saw(&self, parent: u64, name: &CStr) {
        if let Some(mut seen) = self.seen() {
            if seen.parent != parent || seen.name.as_c_str() != name {
                (seen.parent, seen.name) = (parent, name.to_owned());
            }
        }
    }

    fn seen(&self) -> Option<MutexGuard<'_, Seen>> {
        match &self.reach {
            Reach::Held(_) => None,
            Reach::Seen(seen) => Some(seen.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// Its descriptor, if there is one now.
    fn held(&self) -> Option<Arc<OwnedFd>> {
        match &self.reach {
            Reach::Held(fd) => Some(Arc::clone(fd)),
            Reach::Seen(_) => self.seen()?.fd.upgrade(),
        }
    }

    /// Lets others use the descriptor while somebody does.
    fn lend(&self, fd: &Arc<OwnedFd>) {
        if let Some(mut seen) = self.seen() {
            seen.fd = Arc::downgrade(fd);
        }
    }

    /// How often the guest looked it up and has not forgotten.
    pub(super) fn lookups(&self) -> u64 {
        self.lookups.load(Ordering::Relaxed)
    }

    fn forget(&self, count: u64) -> bool {
        let subtract = |lookups: u64| Some(lookups.saturating_sub(count));
        let before = self.lookups.fetch_update(Ordering::AcqRel, Ordering::Acquire, subtract);
        before.is_ok_and(|before| before <= count)
    }
}

/// An inode found on the host that may or may not be in the table.
pub(super) struct Found {
    /// What it is.
    pub(super) key: Key,
    /// Its `O_PATH` descriptor.
    pub(super) fd: OwnedFd,
    /// Its type.
    pub(super) kind: FileType,
    /// The share it was reached through.
    pub(super) share: Arc<Share>,
    /// Whether it is a directory on which another file system starts.
    pub(super) submount: bool,
    /// Node id of the directory and name where it was found, if its descriptor is not to be held.
    pub(super) seen: Option<(u64, CString)>,
}

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<u64, Arc<Node>>,
    by_key: HashMap<Key, Arc<Node>>,
}

/// All inodes the guest knows, bounded in number.
#[derive(Debug)]
pub(super) struct Inodes {
    table: RwLock<Table>,
    next: AtomicU64,
    limit: usize,
}

impl Inodes {
    /// An empty table for at most `limit` inodes.
    pub(super) fn new(limit: usize) -> Self {
        Self { table: RwLock::default(), next: AtomicU64::new(ROOT_ID + 1), limit }
    }

    /// The inode `id`: `ENOENT` where there never was one, `ESTALE` where it is forgotten or its share taken away.
    pub(super) fn get(&self, id: u64) -> Result<Arc<Node>, Errno> {
        let node = self.read().by_id.get(&id).cloned();
        match node {
            Some(node) if !node.share.is_removed() => Ok(node),
            None if id == 0 || id >= self.next.load(Ordering::Relaxed) => Err(Errno::NOENT),
            _ => Err(Errno::STALE),
        }
    }

    /// The inode `id` with its descriptor: errors as of [`Inodes::get`], and `ESTALE` where it cannot be reached any more.
    pub(super) fn place(&self, id: u64) -> Result<Place, Errno> {
        self.reach(self.get(id)?)
    }

    /// The inode with its descriptor: `ESTALE` where it cannot be reached any more.
    pub(super) fn reach(&self, node: Arc<Node>) -> Result<Place, Errno> {
        let fd = match node.held() {
            Some(fd) => fd,
            None => self.open_seen(&node)?,
        };
        Ok(Place { node, fd })
    }

    /// Goes to where the inode was seen last, from the nearest directory whose descriptor is held.
    fn open_seen(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>, Errno> {
        let mut names = Vec::new();
        let mut above = Arc::clone(node);
        let mut fd = loop {
            let Some(seen) = above.seen() else { break above.held().ok_or(Errno::STALE)? };
            if let Some(fd) = seen.fd.upgrade() {
                break fd;
            }
            names.push(seen.name.clone());
            let parent = seen.parent;
            drop(seen);
            // What was seen, and moved since, can be a circle.
            above = if names.len() < MAX_DEPTH { self.get(parent)? } else { return Err(Errno::STALE) };
        };
        for name in names.iter().rev() {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let next = rustix::fs::openat(&fd, name, flags, Mode::empty());
            fd = Arc::new(next.map_err(|errno| if errno == Errno::NFILE { errno } else { Errno::STALE })?);
        }
        if Key::new(&node.share, &stat_fd(&fd)?) != node.key {
            return Err(Errno::STALE);
        }
        node.lend(&fd);
        Ok(fd)
    }

    /// The inode with that key, seen as `name` of the directory `parent`, looked up once more.
    pub(super) fn look_up(&self, key: &Key, (parent, name): (u64, &CStr)) -> Option<Arc<Node>> {
        let table = self.read();
        let node = table.by_key.get(key)?;
        node.lookups.fetch_add(1, Ordering::AcqRel);
        node.saw(parent, name);
        Some(Arc::clone(node))
    }

    /// Notes that the inode with that key, if it is known, was moved to `name` of the directory `parent`.
    pub(super) fn moved(&self, key: &Key, (parent, name): (u64, &CStr)) {
        if let Some(node) = self.read().by_key.get(key) {
            node.saw(parent, name);
        }
    }

    /// The inode that was found, looked up once more, or for the first time. `ENFILE` where the table is full.
    pub(super) fn insert(&self, found: Found) -> Result<Place, Errno> {
        let mut table = self.write();
        if let Some(node) = table.by_key.get(&found.key) {
            node.lookups.fetch_add(1, Ordering::AcqRel);
            if let Some((parent, name)) = &found.seen {
                node.saw(*parent, name);
            }
            return Ok(Place { node: Arc::clone(node), fd: Arc::new(found.fd) });
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.enter(&mut table, found, id, 1)
    }

    /// Puts a saved inode back under the id and with the lookups it had.
    pub(super) fn restore(&self, found: Found, id: u64, lookups: u64) -> Result<Place, Errno> {
        self.next.fetch_max(id.saturating_add(1), Ordering::Relaxed);
        self.enter(&mut self.write(), found, id, lookups)
    }

    fn enter(&self, table: &mut Table, found: Found, id: u64, lookups: u64) -> Result<Place, Errno> {
        if table.by_id.len() >= self.limit {
            return Err(Errno::NFILE);
        }
        let Found { key, fd, kind, share, submount, seen } = found;
        let fd = Arc::new(fd);
        let reach = match seen {
            None => Reach::Held(Arc::clone(&fd)),
            Some((parent, name)) => Reach::Seen(Mutex::new(Seen { parent, name, fd: Arc::downgrade(&fd) })),
        };
        let lookups = AtomicU64::new(lookups);
        let node = Arc::new(Node { id, key, share, kind, submount, cached: Mutex::default(), reach, lookups });
        table.by_id.insert(id, Arc::clone(&node));
        table.by_key.insert(key, Arc::clone(&node));
        Ok(Place { node, fd })
    }

    /// Takes back `count` lookups of inode `id`, at most all; without any it leaves the table.
    pub(super) fn forget(&self, id: u64, count: u64) {
        let Some(node) = self.read().by_id.get(&id).cloned() else { return };
        if !node.forget(count) {
            return;
        }
        let mut table = self.write();
        if node.lookups() == 0 {
            table.by_id.remove(&id);
            // A node that was replaced under its key, by one restored, must not take its successor along.
            if table.by_key.get(&node.key).is_some_and(|current| current.id == id) {
                table.by_key.remove(&node.key);
            }
        }
    }

    /// Forgets every inode.
    pub(super) fn clear(&self) {
        let all = std::mem::take(&mut *self.write());
        drop(all);
    }

    /// The id the next new inode will get.
    pub(super) fn next_id(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Lets no new inode have an id below `id`.
    pub(super) fn reserve_ids(&self, id: u64) {
        self.next.fetch_max(id, Ordering::Relaxed);
    }

    /// All inodes.
    pub(super) fn all(&self) -> Vec<Arc<Node>> {
        self.read().by_id.values().cloned().collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What attributes are asked of the host.
const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME).union(StatxFlags::MNT_ID);

/// The attributes of what `fd` stands for.
pub(super) fn stat_fd(fd: impl AsFd) -> Result<Statx, Errno> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT, WANTED)
}

/// The attributes of the entry `name` of `directory`, of a symbolic link itself.
pub(super) fn stat_entry(directory: impl AsFd, name: &std::ffi::CStr) -> Result<Statx, Errno> {
    rustix::fs::statx(directory, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, WANTED)
}

/// The type of an inode with these attributes.
pub(super) fn kind_of(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}
