//! What the guest has open.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustix::io::Errno;

use super::directory_stream::DirectoryStream;
use super::inode::InodeFd;

/// A file or directory the guest has open.
#[derive(Debug)]
pub(crate) enum Handle {
    /// A regular file.
    File {
        /// Its inode, whose descriptor is held meanwhile.
        inode: InodeFd,
        /// The open file.
        file: OwnedFd,
        /// Flags it was opened with (`open(2)`), as the guest gave them.
        flags: u32,
    },
    /// A directory of a share.
    Directory {
        /// Its inode, whose descriptor is held meanwhile.
        inode: InodeFd,
        /// Its entries.
        stream: Mutex<DirectoryStream>,
    },
    /// A synthetic directory, as it was when it was opened.
    Synthetic {
        /// Its node id.
        id: u64,
        /// Names and node ids of its entries.
        entries: Vec<(String, u64)>,
    },
}

impl Handle {
    /// The node id it was opened by.
    pub(crate) fn node_id(&self) -> u64 {
        match self {
            Self::File { inode, .. } | Self::Directory { inode, .. } => inode.id,
            Self::Synthetic { id, .. } => *id,
        }
    }

    /// Its inode, where it is of a share.
    pub(crate) fn inode(&self) -> Option<&InodeFd> {
        match self {
            Self::File { inode, .. } | Self::Directory { inode, .. } => Some(inode),
            Self::Synthetic { .. } => None,
        }
    }

    /// The open regular file; `EBADF` where it is a directory.
    pub(crate) fn file(&self) -> Result<BorrowedFd<'_>, Errno> {
        match self {
            Self::File { file, .. } => Ok(file.as_fd()),
            Self::Directory { .. } | Self::Synthetic { .. } => Err(Errno::BADF),
        }
    }

    /// The entries of an open directory of a share; `EBADF` where it is something else.
    pub(crate) fn stream(&self) -> Result<MutexGuard<'_, DirectoryStream>, Errno> {
        match self {
            Self::Directory { stream, .. } => Ok(stream.lock().unwrap_or_else(PoisonError::into_inner)),
            Self::File { .. } | Self::Synthetic { .. } => Err(Errno::BADF),
        }
    }
}

/// All the guest has open, bounded in number.
#[derive(Debug)]
pub(crate) struct Handles {
    table: RwLock<HashMap<u64, Arc<Handle>>>,
    next: AtomicU64,
    limit: usize,
}

impl Handles {
    /// An empty table for at most `limit` handles.
    pub(crate) fn new(limit: usize) -> Self {
        Self { table: RwLock::default(), next: AtomicU64::new(1), limit }
    }

    /// Handle `id`, of inode `node`: `EBADF` where there is none such, `ESTALE` where its share was taken away.
    pub(crate) fn get(&self, id: u64, inode: u64) -> Result<Arc<Handle>, Errno> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let handle = table.get(&id).filter(|handle| handle.node_id() == inode).ok_or(Errno::BADF)?;
        if handle.inode().is_some_and(|inode| inode.share.is_removed()) {
            return Err(Errno::STALE);
        }
        Ok(Arc::clone(handle))
    }

    /// Keeps `handle` and returns its id; `ENFILE` where the table is full.
    pub(crate) fn insert(&self, handle: Handle) -> Result<u64, Errno> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.restore(id, handle)?;
        Ok(id)
    }

    /// Puts a saved handle back under its id.
    pub(crate) fn restore(&self, id: u64, handle: Handle) -> Result<(), Errno> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= self.limit {
            return Err(Errno::NFILE);
        }
        self.next.fetch_max(id.saturating_add(1), Ordering::Relaxed);
        table.insert(id, Arc::new(handle));
        Ok(())
    }

    /// Closes handle `id` of inode `node`.
    pub(crate) fn remove(&self, id: u64, inode: u64) -> Result<(), Errno> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.get(&id).is_none_or(|handle| handle.node_id() != inode) {
            return Err(Errno::BADF);
        }
        let closed = table.remove(&id);
        drop(table);
        drop(closed);
        Ok(())
    }

    /// Closes every handle.
    pub(crate) fn clear(&self) {
        let all = std::mem::take(&mut *self.table.write().unwrap_or_else(PoisonError::into_inner));
        drop(all);
    }

    /// All handles with their ids.
    pub(crate) fn all(&self) -> Vec<(u64, Arc<Handle>)> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.iter().map(|(id, handle)| (*id, Arc::clone(handle))).collect()
    }
}
