//! Saving and restoring the guest's view of the file server.
//!
//! A descriptor cannot be saved, but the path from its share's root can. The path is opened component by component
//! without following symbolic links. A path is saved only if it leads to the same inode at that moment.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Server;
use super::names::is_kernel_view;
use crate::fs::error::FsError;
use crate::fs::tables::handles::Handle;
use crate::fs::tables::inode::{FoundInode, Inode, InodeKey, file_type, stat_fd};
use crate::fs::tables::shares::Share;

/// The saved state of the file server.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct FsState {
    /// The session's negotiated flags; 0 without a session.
    session: u64,
    /// The next node id: no inode has had this id or a higher one.
    next_inode: u64,
    /// The names of containers and the node ids of their directories.
    containers: Vec<(String, u64)>,
    inodes: Vec<InodeState>,
    handles: Vec<HandleState>,
}

/// An inode that the guest knows.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct InodeState {
    id: u64,
    lookups: u64,
    submount: bool,
    share: String,
    /// Components of the path from the share's root, if there is one.
    path: Option<Vec<CString>>,
}

/// A file or directory that the guest has open.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct HandleState {
    id: u64,
    inode: u64,
    kind: HandleKind,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum HandleKind {
    /// The flags of `open(2)`.
    File(u32),
    Directory,
    /// Names and node ids of the entries.
    Synthetic(Vec<(String, u64)>),
}

impl Server {
    /// The server's state. No worker may be serving a request. An open file without a path is saved without one, and
    /// cannot be restored.
    pub(in crate::fs) fn save(&self) -> FsState {
        let handles = self.handles.all();
        let open: BTreeSet<u64> = handles.iter().map(|(_, handle)| handle.node_id()).collect();
        let inodes = self.inodes.all().into_iter().filter(|inode| !inode.share.is_removed()).map(|inode| InodeState {
            id: inode.id,
            lookups: inode.lookups(),
            submount: inode.submount,
            share: inode.share.name.clone(),
            path: self.path_of(Arc::clone(&inode)),
        });
        // Inodes without a path are not saved unless they are open. The guest gets ESTALE and looks the name up again.
        let inodes: Vec<_> = inodes.filter(|inode| inode.path.is_some() || open.contains(&inode.id)).collect();
        let saved: BTreeSet<u64> = inodes.iter().map(|inode| inode.id).collect();
        let handles = handles.into_iter().map(|(id, handle)| save_handle(id, &handle));
        let handles = handles.filter(|handle| saved.contains(&handle.inode) || handle.kind.is_synthetic()).collect();
        FsState {
            session: self.session(),
            next_inode: self.inodes.next_id(),
            containers: self.shares.containers(),
            inodes,
            handles,
        }
    }

    /// The path from the share's root that leads to `inode` now.
    fn path_of(&self, inode: Arc<Inode>) -> Option<Vec<CString>> {
        let inode = self.inodes.with_fd(inode).ok()?;
        let share = &inode.share;
        let root = self.proc_fds.target(share.root.as_fd()).ok()?;
        let path = components(&root, &self.proc_fds.target(inode.as_fd()).ok()?)?;
        let there = stat_fd(walk(share, &path).ok()?).ok()?;
        (InodeKey::new(share, &there) == inode.key).then_some(path)
    }

    /// Restores a saved state.
    pub(in crate::fs) fn restore(&self, state: &FsState) -> Result<(), FsError> {
        self.shares.restore_ids(&state.containers);
        self.inodes.reserve_ids(state.next_inode);
        let open: BTreeSet<u64> = state.handles.iter().map(|handle| handle.inode).collect();
        for inode in &state.inodes {
            match self.restore_inode(inode) {
                Ok(()) => {}
                Err(errno) if open.contains(&inode.id) => {
                    return Err(FsError::NoPath { inode: inode.id, share: inode.share.clone(), source: errno.into() });
                }
                Err(errno) => tracing::debug!("inode {} is not restored: {errno}", inode.id),
            }
        }
        for handle in &state.handles {
            self.restore_handle(handle)
                .map_err(|errno| FsError::Reopen { inode: handle.inode, source: errno.into() })?;
        }
        self.restore_session(state.session);
        Ok(())
    }

    fn restore_inode(&self, saved: &InodeState) -> Result<(), Errno> {
        let share = self.shares.share(&saved.share).ok_or(Errno::STALE)?;
        let fd = walk(&share, saved.path.as_ref().ok_or(Errno::NOENT)?)?;
        let stat = stat_fd(&fd)?;
        let (key, kind) = (InodeKey::new(&share, &stat), file_type(&stat));
        // The mounts may be others than when the state was saved, and the path may lead through several.
        let kernel_view = stat.stx_mnt_id != share.mount && is_kernel_view(&fd, kind)?;
        let found = FoundInode { key, fd, kind, share, submount: saved.submount, kernel_view, last_name: None };
        self.inodes.restore(found, saved.id, saved.lookups).map(drop)
    }

    fn restore_handle(&self, saved: &HandleState) -> Result<(), Errno> {
        let inode = |id| self.inodes.get_with_fd(id);
        let handle = match &saved.kind {
            HandleKind::Synthetic(entries) => Handle::Synthetic { id: saved.inode, entries: entries.clone() },
            HandleKind::Directory => self.directory_handle(inode(saved.inode)?)?,
            HandleKind::File(flags) => {
                let inode = inode(saved.inode)?;
                let flags = flags & !OFlags::TRUNC.bits();
                let file = self.open_file(&inode, flags)?;
                Handle::File { inode, file, flags }
            }
        };
        self.handles.restore(saved.id, handle)
    }
}

impl HandleKind {
    fn is_synthetic(&self) -> bool {
        matches!(self, Self::Synthetic(_))
    }
}

fn save_handle(id: u64, handle: &Arc<Handle>) -> HandleState {
    let kind = match &**handle {
        Handle::File { flags, .. } => HandleKind::File(*flags),
        Handle::Directory { .. } => HandleKind::Directory,
        Handle::Synthetic { entries, .. } => HandleKind::Synthetic(entries.clone()),
    };
    HandleState { id, inode: handle.node_id(), kind }
}

/// The components of the host's `path` below `root`.
fn components(root: &[u8], path: &[u8]) -> Option<Vec<CString>> {
    let below = path.strip_prefix(root)?;
    let below = match below {
        [] => return Some(Vec::new()),
        [b'/', rest @ ..] => rest,
        // The host's root directory is the only path that ends with a slash.
        _ if root.ends_with(b"/") => below,
        _ => return None,
    };
    below.split(|byte| *byte == b'/').map(|component| CString::new(component).ok()).collect()
}

/// The `O_PATH` descriptor of `path` below the root of `share`.
fn walk(share: &Share, path: &[CString]) -> Result<OwnedFd, Errno> {
    let mut fd = share.root.try_clone().map_err(|_| Errno::NFILE)?;
    for component in path {
        // The saved state is not trusted, so components that lead up or elsewhere are rejected.
        if matches!(component.to_bytes(), b"" | b"." | b"..") || component.to_bytes().contains(&b'/') {
            return Err(Errno::INVAL);
        }
        if file_type(&stat_fd(&fd)?) != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fd = rustix::fs::openat(&fd, component, flags, Mode::empty())?;
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(root: &str, path: &str) -> Option<Vec<String>> {
        let found = components(root.as_bytes(), path.as_bytes())?;
        Some(found.into_iter().map(|component| component.into_string().unwrap()).collect())
    }

    #[test]
    fn components_are_those_below_the_root() {
        assert_eq!(split("/srv/a", "/srv/a"), Some(vec![]));
        assert_eq!(split("/srv/a", "/srv/a/b/c"), Some(vec!["b".into(), "c".into()]));
        assert_eq!(split("/", "/b"), Some(vec!["b".into()]));
        assert_eq!(split("/srv/a", "/srv/ab"), None);
        assert_eq!(split("/srv/a", "/else"), None);
    }
}
