//! The tree of shares that the guest sees. It changes while the guest runs.
//!
//! ```text
//! /                     synthetic, read-only
//! └─ CONTAINER/         synthetic, exists while it has a share
//!    ├─ rootfs          a share: a directory or a regular file of the host
//!    └─ volume-0
//! ```

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, StatxFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::config::ShareOptions;
use crate::fs::kernel_view::kernel_view;
use crate::fs::protocol::wire::ROOT_ID;

/// The longest name of a container or share in bytes (`NAME_MAX`).
const MAX_NAME: usize = 255;

/// The first node id of containers' synthetic directories.
pub(crate) const FIRST_CONTAINER_ID: u64 = 1 << 63;

/// Why the tree cannot be changed.
#[derive(Debug, Error)]
pub enum ShareError {
    /// The name does not have the form `CONTAINER/SHARE`.
    #[error("share name {0:?} does not have the form CONTAINER/SHARE")]
    Name(String),
    /// A share of that name exists.
    #[error("share {0:?} exists already")]
    Exists(String),
    /// There is no share of that name.
    #[error("share {0:?} does not exist")]
    Missing(String),
    /// Its root cannot be shared.
    #[error("share {0:?} is neither a directory nor a regular file")]
    Kind(String),
    /// Its root is on a file system that is a view of the host's kernel.
    #[error("share {0:?} is on {1}, a view of the host's kernel")]
    KernelView(String, &'static str),
    /// Its root's attributes could not be read.
    #[error("cannot read the attributes of share {0:?}")]
    Attributes(String, #[source] std::io::Error),
}

/// A directory or file of the host that the guest can use.
#[derive(Debug)]
pub(crate) struct Share {
    /// The share's id, which is never reused, unlike its name.
    pub(crate) id: u64,
    /// `CONTAINER/SHARE`.
    pub(crate) name: String,
    /// The share's root. The server never accesses anything above it.
    pub(crate) root: OwnedFd,
    /// How the share is served.
    pub(crate) options: ShareOptions,
    /// The id of the mount that the root is on.
    pub(crate) mount: u64,
    removed: AtomicBool,
}

impl Share {
    /// Whether the share was removed from the tree.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }
}

/// The synthetic directory of one container.
#[derive(Debug)]
struct Container {
    id: u64,
    shares: BTreeMap<String, Arc<Share>>,
}

#[derive(Debug)]
struct Tree {
    containers: BTreeMap<String, Container>,
    next_container: u64,
    next_share: u64,
}

/// A handle to the tree of shares. All clones refer to the same tree: the control server changes it, and the file
/// server reads it.
#[derive(Clone, Debug)]
pub struct SharesHandle(Arc<Mutex<Tree>>);

impl Default for SharesHandle {
    fn default() -> Self {
        let tree = Tree { containers: BTreeMap::new(), next_container: FIRST_CONTAINER_ID, next_share: 1 };
        Self(Arc::new(Mutex::new(tree)))
    }
}

impl SharesHandle {
    /// A tree without shares.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `root`, a directory or regular file, as `name` (`CONTAINER/SHARE`). The guest sees it immediately.
    ///
    /// # Errors
    /// The name is malformed or in use, or `root` is neither a directory nor a regular file, or it is on a view of the
    /// host's kernel.
    pub fn add(&self, name: &str, root: OwnedFd, options: ShareOptions) -> Result<(), ShareError> {
        let (container, leaf) = split(name)?;
        let mount = check_root(name, &root)?;
        let mut tree = self.lock();
        if tree.containers.get(container).is_some_and(|known| known.shares.contains_key(leaf)) {
            return Err(ShareError::Exists(name.to_owned()));
        }
        let share = Share { id: tree.next_share, name: name.to_owned(), root, options, mount, removed: false.into() };
        tree.next_share += 1;
        tree.container(container).shares.insert(leaf.to_owned(), Arc::new(share));
        Ok(())
    }

    /// Removes a share. Requests for inodes or open files of the share then fail with `ESTALE`.
    ///
    /// # Errors
    /// There is no share of that name.
    pub fn remove(&self, name: &str) -> Result<(), ShareError> {
        let (container, leaf) = split(name)?;
        let mut tree = self.lock();
        let missing = || ShareError::Missing(name.to_owned());
        let known = tree.containers.get_mut(container).ok_or_else(missing)?;
        let share = known.shares.remove(leaf).ok_or_else(missing)?;
        share.removed.store(true, Ordering::Relaxed);
        if known.shares.is_empty() {
            tree.containers.remove(container);
        }
        Ok(())
    }

    /// Removes all shares of a container. It is no error if there are none.
    pub fn remove_container(&self, name: &str) {
        if let Some(container) = self.lock().containers.remove(name) {
            container.shares.values().for_each(|share| share.removed.store(true, Ordering::Relaxed));
        }
    }

    /// The node id of a container's synthetic directory.
    pub(crate) fn container_id(&self, name: &str) -> Option<u64> {
        self.lock().containers.get(name).map(|container| container.id)
    }

    /// The share `leaf` in the container directory with node id `id`.
    pub(crate) fn share_in(&self, id: u64, leaf: &str) -> Option<Arc<Share>> {
        let tree = self.lock();
        tree.containers.values().find(|container| container.id == id)?.shares.get(leaf).cloned()
    }

    /// The share with the full name `name` (`CONTAINER/SHARE`).
    pub(crate) fn share(&self, name: &str) -> Option<Arc<Share>> {
        let (container, leaf) = split(name).ok()?;
        self.lock().containers.get(container)?.shares.get(leaf).cloned()
    }

    /// Names and node ids of the entries of the synthetic directory `id`. The id of a share's root is not known here,
    /// and is 0. `None` if there is no such directory.
    pub(crate) fn entries(&self, id: u64) -> Option<Vec<(String, u64)>> {
        let tree = self.lock();
        if id == ROOT_ID {
            return Some(tree.containers.iter().map(|(name, container)| (name.clone(), container.id)).collect());
        }
        let container = tree.containers.values().find(|container| container.id == id)?;
        Some(container.shares.keys().map(|name| (name.clone(), 0)).collect())
    }

    /// Whether `id` is a synthetic directory that exists.
    pub(crate) fn contains(&self, id: u64) -> bool {
        id == ROOT_ID || self.lock().containers.values().any(|container| container.id == id)
    }

    /// The names of containers and the node ids of their directories.
    pub(crate) fn containers(&self) -> Vec<(String, u64)> {
        self.lock().containers.iter().map(|(name, container)| (name.clone(), container.id)).collect()
    }

    /// Gives the containers' directories their saved node ids. Ignores ids that no container can have had.
    pub(crate) fn restore_ids(&self, ids: &[(String, u64)]) {
        let mut tree = self.lock();
        for (name, id) in ids.iter().filter(|(_, id)| (FIRST_CONTAINER_ID..u64::MAX).contains(id)) {
            tree.next_container = tree.next_container.max(id + 1);
            if let Some(container) = tree.containers.get_mut(name) {
                container.id = *id;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tree> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tree {
    fn container(&mut self, name: &str) -> &mut Container {
        let next = &mut self.next_container;
        self.containers.entry(name.to_owned()).or_insert_with(|| {
            let id = *next;
            *next += 1;
            Container { id, shares: BTreeMap::new() }
        })
    }
}

/// Whether `id` is in the range of synthetic directories. The directory need not exist.
pub(crate) fn is_synthetic(id: u64) -> bool {
    id == ROOT_ID || id >= FIRST_CONTAINER_ID
}

/// Splits a share's name into container name and share name.
fn split(name: &str) -> Result<(&str, &str), ShareError> {
    let good = |part: &str| !matches!(part, "" | "." | "..") && part.len() <= MAX_NAME && !part.contains(['/', '\0']);
    name.split_once('/')
        .filter(|(container, leaf)| good(container) && good(leaf))
        .ok_or_else(|| ShareError::Name(name.to_owned()))
}

/// Checks that `root` is a directory or a regular file, and on no view of the host's kernel. Returns the id of the mount that it is on.
fn check_root(name: &str, root: &OwnedFd) -> Result<u64, ShareError> {
    let failed = |errno: Errno| ShareError::Attributes(name.to_owned(), errno.into());
    let stat = rustix::fs::statx(root, c"", AtFlags::EMPTY_PATH, StatxFlags::TYPE | StatxFlags::MNT_ID);
    let stat = stat.map_err(failed)?;
    if let Some(kind) = kernel_view(root).map_err(failed)? {
        return Err(ShareError::KernelView(name.to_owned(), kind));
    }
    match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Directory | FileType::RegularFile => Ok(stat.stx_mnt_id),
        _ => Err(ShareError::Kind(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn root() -> OwnedFd {
        File::open("/").unwrap().into()
    }

    #[test]
    fn names_are_two_components() {
        let shares = SharesHandle::new();
        for bad in ["", "a", "/a", "a/", "a/b/c", "../a", "a/..", "./a", "a/.", "a/b\0"] {
            assert!(matches!(shares.add(bad, root(), ShareOptions::default()), Err(ShareError::Name(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_container_directory_exists_while_it_has_shares() {
        let shares = SharesHandle::new();
        shares.add("c/rootfs", root(), ShareOptions::default()).unwrap();
        let id = shares.container_id("c").unwrap();
        assert!(shares.contains(id));
        assert!(matches!(shares.add("c/rootfs", root(), ShareOptions::default()), Err(ShareError::Exists(_))));
        let share = shares.share("c/rootfs").unwrap();
        shares.remove("c/rootfs").unwrap();
        assert!(share.is_removed());
        assert!(!shares.contains(id));
        assert!(matches!(shares.remove("c/rootfs"), Err(ShareError::Missing(_))));
        shares.add("c/rootfs", root(), ShareOptions::default()).unwrap();
        assert_ne!(shares.container_id("c").unwrap(), id, "node ids are not used again");
    }

    #[test]
    fn a_view_of_the_hosts_kernel_cannot_be_shared() {
        for path in ["/proc", "/proc/self/status", "/sys/kernel"] {
            let added = SharesHandle::new().add("c/view", File::open(path).unwrap().into(), ShareOptions::default());
            assert!(matches!(added, Err(ShareError::KernelView(..))), "{path}: {added:?}");
        }
    }

    #[test]
    fn saved_node_ids_that_no_container_can_have_are_ignored() {
        let shares = SharesHandle::new();
        shares.add("a/rootfs", root(), ShareOptions::default()).unwrap();
        for id in [0, ROOT_ID, FIRST_CONTAINER_ID - 1, u64::MAX] {
            shares.restore_ids(&[("a".into(), id)]);
            assert_eq!(shares.container_id("a"), Some(FIRST_CONTAINER_ID));
        }
        shares.restore_ids(&[("a".into(), FIRST_CONTAINER_ID + 7)]);
        shares.add("b/rootfs", root(), ShareOptions::default()).unwrap();
        assert_eq!(shares.container_id("b"), Some(FIRST_CONTAINER_ID + 8));
    }

    #[test]
    fn a_device_node_cannot_be_shared() {
        let device = File::open("/dev/null").unwrap().into();
        assert!(matches!(SharesHandle::new().add("c/null", device, ShareOptions::default()), Err(ShareError::Kind(_))));
    }
}
