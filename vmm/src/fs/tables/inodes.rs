//! The table of inodes that the guest knows. It maps node ids to `O_PATH` descriptors.
//!
//! An open descriptor prevents the host from unmounting the mount that it is on. So the table does not hold descriptors
//! on mounts below a share with `follows_host`. It stores the last known name of such an inode and opens it by that
//! name when it is needed. A file that the guest has open keeps its descriptor.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::inode::{FoundInode, Inode, InodeFd, InodeKey, stat_fd};
use crate::fs::protocol::wire::ROOT_ID;

/// The most directories between an inode and an ancestor with an open descriptor.
const MAX_DEPTH: usize = 1024;

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<u64, Arc<Inode>>,
    by_key: HashMap<InodeKey, Arc<Inode>>,
}

/// The table of inodes, with a bounded number of entries.
#[derive(Debug)]
pub(crate) struct Inodes {
    table: RwLock<Table>,
    next: AtomicU64,
    limit: usize,
}

impl Inodes {
    /// An empty table for at most `limit` inodes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { table: RwLock::default(), next: AtomicU64::new(ROOT_ID + 1), limit }
    }

    /// The inode `id`. `ENOENT` if there never was one, `ESTALE` if it was forgotten or its share was removed.
    pub(crate) fn get(&self, id: u64) -> Result<Arc<Inode>, Errno> {
        let inode = self.read().by_id.get(&id).cloned();
        match inode {
            Some(inode) if !inode.share.is_removed() => Ok(inode),
            None if id == 0 || id >= self.next.load(Ordering::Relaxed) => Err(Errno::NOENT),
            _ => Err(Errno::STALE),
        }
    }

    /// The inode `id` with its descriptor. Errors as for [`Inodes::get`], and `ESTALE` if it can no longer be opened.
    pub(crate) fn get_with_fd(&self, id: u64) -> Result<InodeFd, Errno> {
        self.with_fd(self.get(id)?)
    }

    /// The inode with its descriptor. `ESTALE` if it can no longer be opened.
    pub(crate) fn with_fd(&self, inode: Arc<Inode>) -> Result<InodeFd, Errno> {
        let fd = match inode.open_fd() {
            Some(fd) => fd,
            None => self.open_by_name(&inode)?,
        };
        Ok(InodeFd { inode, fd })
    }

    /// Opens the inode by its last known name, starting at the nearest ancestor with an open descriptor.
    fn open_by_name(&self, inode: &Arc<Inode>) -> Result<Arc<OwnedFd>, Errno> {
        let mut names = Vec::new();
        let mut above = Arc::clone(inode);
        let mut fd = loop {
            let Some(last_name) = above.last_name() else { break above.open_fd().ok_or(Errno::STALE)? };
            if let Some(fd) = last_name.fd.upgrade() {
                break fd;
            }
            names.push(last_name.name.clone());
            let parent = last_name.parent;
            drop(last_name);
            // Last known names can form a cycle, since directories may have been moved.
            above = if names.len() < MAX_DEPTH { self.get(parent)? } else { return Err(Errno::STALE) };
        };
        for name in names.iter().rev() {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let next = rustix::fs::openat(&fd, name, flags, Mode::empty());
            fd = Arc::new(next.map_err(|errno| match errno {
                Errno::NFILE | Errno::MFILE => errno,
                _ => Errno::STALE,
            })?);
        }
        if InodeKey::new(&inode.share, &stat_fd(&fd)?) != inode.key || !inode.is_on_same_file_system(&fd)? {
            return Err(Errno::STALE);
        }
        inode.cache_fd(&fd);
        Ok(fd)
    }

    /// Increments the lookup count of the inode with this key, if it is in the table, and stores its last known name.
    pub(crate) fn lookup(&self, key: &InodeKey, (parent, name): (u64, &CStr)) -> Option<Arc<Inode>> {
        let table = self.read();
        let inode = table.by_key.get(key)?;
        inode.add_lookup();
        inode.set_last_name(parent, name);
        Some(Arc::clone(inode))
    }

    /// Stores the name to which the inode with this key was moved, if it is in the table.
    pub(crate) fn update_name(&self, key: &InodeKey, (parent, name): (u64, &CStr)) {
        if let Some(inode) = self.read().by_key.get(key) {
            inode.set_last_name(parent, name);
        }
    }

    /// Increments the lookup count of the found inode, or adds the inode to the table. `ENFILE` if the table is full.
    pub(crate) fn insert(&self, found: FoundInode) -> Result<InodeFd, Errno> {
        let mut table = self.write();
        if let Some(inode) = table.by_key.get(&found.key) {
            inode.add_lookup();
            if let Some((parent, name)) = &found.last_name {
                inode.set_last_name(*parent, name);
            }
            return Ok(InodeFd { inode: Arc::clone(inode), fd: Arc::new(found.fd) });
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.insert_as(&mut table, found, id, 1)
    }

    /// Adds a saved inode with its node id and its lookup count.
    pub(crate) fn restore(&self, found: FoundInode, id: u64, lookups: u64) -> Result<InodeFd, Errno> {
        self.next.fetch_max(id.saturating_add(1), Ordering::Relaxed);
        self.insert_as(&mut self.write(), found, id, lookups)
    }

    fn insert_as(&self, table: &mut Table, found: FoundInode, id: u64, lookups: u64) -> Result<InodeFd, Errno> {
        if table.by_id.len() >= self.limit {
            return Err(Errno::NFILE);
        }
        let InodeFd { inode, fd } = found.into_inode(id, lookups);
        table.by_id.insert(id, Arc::clone(&inode));
        table.by_key.insert(inode.key, Arc::clone(&inode));
        Ok(InodeFd { inode, fd })
    }

    /// Subtracts `count` from the lookup count of inode `id`, down to 0. At 0, removes the inode.
    pub(crate) fn forget(&self, id: u64, count: u64) {
        let Some(inode) = self.read().by_id.get(&id).cloned() else { return };
        if !inode.forget(count) {
            return;
        }
        let mut table = self.write();
        if inode.lookups() == 0 {
            table.by_id.remove(&id);
            // A restored inode may have replaced this one under the same key. That one stays.
            if table.by_key.get(&inode.key).is_some_and(|current| current.id == id) {
                table.by_key.remove(&inode.key);
            }
        }
    }

    /// Removes all inodes.
    pub(crate) fn clear(&self) {
        let all = std::mem::take(&mut *self.write());
        drop(all);
    }

    /// The node id of the next new inode.
    pub(crate) fn next_id(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Reserves the node ids below `id`, so that no new inode gets one of them.
    pub(crate) fn reserve_ids(&self, id: u64) {
        self.next.fetch_max(id, Ordering::Relaxed);
    }

    /// All inodes.
    pub(crate) fn all(&self) -> Vec<Arc<Inode>> {
        self.read().by_id.values().cloned().collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}
