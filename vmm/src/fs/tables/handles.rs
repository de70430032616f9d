//! The files and directories that the guest has open.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustix::io::Errno;

use super::directory_stream::DirectoryStream;
use super::inode::InodeFd;

/// A file or directory that the guest has open.
#[derive(Debug)]
pub(crate) enum Handle {
    /// A regular file.
    File {
        /// The file's inode. Its descriptor is held while the file is open.
        inode: InodeFd,
        /// The open file.
        file: OwnedFd,
        /// The `open(2)` flags that the guest sent.
        flags: u32,
    },
    /// A directory of a share.
    Directory {
        /// The directory's inode. Its descriptor is held while the directory is open.
        inode: InodeFd,
        /// The directory's entries.
        stream: Mutex<DirectoryStream>,
    },
    /// A synthetic directory, with the entries at the time of `OPENDIR`; or the empty directory that the guest sees in
    /// the place of a view of the host's kernel.
    Synthetic {
        /// The directory's node id.
        id: u64,
        /// Names and node ids of the entries.
        entries: Vec<(String, u64)>,
    },
}

impl Handle {
    /// The node id of the open file or directory.
    pub(crate) fn node_id(&self) -> u64 {
        match self {
            Self::File { inode, .. } | Self::Directory { inode, .. } => inode.id,
            Self::Synthetic { id, .. } => *id,
        }
    }

    /// The inode, unless the directory is synthetic.
    pub(crate) fn inode(&self) -> Option<&InodeFd> {
        match self {
            Self::File { inode, .. } | Self::Directory { inode, .. } => Some(inode),
            Self::Synthetic { .. } => None,
        }
    }

    /// The open regular file. `EBADF` for a directory.
    pub(crate) fn file(&self) -> Result<BorrowedFd<'_>, Errno> {
        match self {
            Self::File { file, .. } => Ok(file.as_fd()),
            Self::Directory { .. } | Self::Synthetic { .. } => Err(Errno::BADF),
        }
    }

    /// The entries of an open directory of a share. `EBADF` for anything else.
    pub(crate) fn stream(&self) -> Result<MutexGuard<'_, DirectoryStream>, Errno> {
        match self {
            Self::Directory { stream, .. } => Ok(stream.lock().unwrap_or_else(PoisonError::into_inner)),
            Self::File { .. } | Self::Synthetic { .. } => Err(Errno::BADF),
        }
    }
}

/// The table of file handles, with a bounded number of entries.
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

    /// The file handle `id` of inode `inode`. `EBADF` if there is none, `ESTALE` if its share was removed.
    pub(crate) fn get(&self, id: u64, inode: u64) -> Result<Arc<Handle>, Errno> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let handle = table.get(&id).filter(|handle| handle.node_id() == inode).ok_or(Errno::BADF)?;
        if handle.inode().is_some_and(|inode| inode.share.is_removed()) {
            return Err(Errno::STALE);
        }
        Ok(Arc::clone(handle))
    }

    /// Adds `handle` and returns its id. `ENFILE` if the table is full.
    pub(crate) fn insert(&self, handle: Handle) -> Result<u64, Errno> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.restore(id, handle)?;
        Ok(id)
    }

    /// Adds a saved handle with its id.
    pub(crate) fn restore(&self, id: u64, handle: Handle) -> Result<(), Errno> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= self.limit {
            return Err(Errno::NFILE);
        }
        self.next.fetch_max(id.saturating_add(1), Ordering::Relaxed);
        table.insert(id, Arc::new(handle));
        Ok(())
    }

    /// Closes file handle `id` of inode `inode`. `EBADF` if there is none.
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

    /// Closes all file handles.
    pub(crate) fn clear(&self) {
        let all = std::mem::take(&mut *self.table.write().unwrap_or_else(PoisonError::into_inner));
        drop(all);
    }

    /// All file handles with their ids.
    pub(crate) fn all(&self) -> Vec<(u64, Arc<Handle>)> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.iter().map(|(id, handle)| (*id, Arc::clone(handle))).collect()
    }
}
