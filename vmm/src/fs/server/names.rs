//! Names: looking up, creating, renaming and removing directory entries.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Statx};
use rustix::io::Errno;

use super::CACHE_SECONDS;
use super::Server;
use super::attributes::{attr_of, synthetic_attr};
use super::node_maker::is_device;
use crate::fs::kernel_view::kernel_view;
use crate::fs::protocol::reply::Reply;
use crate::fs::protocol::request::Owner;
use crate::fs::protocol::request::Request;
use crate::fs::protocol::wire::{EntryOut, LinkIn, MkdirIn, MknodIn, ROOT_ID, Rename2In, RenameIn, op};
use crate::fs::tables::inode::{FoundInode, Inode, InodeFd, InodeKey, file_type, stat_entry, stat_fd};
use crate::fs::tables::shares::is_synthetic;
use crate::fs::worker::Worker;
use crate::fs::worker::proc_fds::fd_name;
use crate::helper::{MakeNode, decode_device};

impl Server {
    pub(super) fn lookup(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let name = request.last_name()?;
        let parent = request.header.nodeid;
        if is_synthetic(parent) {
            return self.lookup_synthetic(parent, name, reply);
        }
        let (inode, stat) = self.lookup_child(&self.inodes.get_with_fd(parent)?, name)?;
        reply.put(&entry_of(&inode, &stat))
    }

    fn lookup_synthetic(&self, parent: u64, name: &CStr, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let name = name.to_str().map_err(|_| Errno::NOENT)?;
        if parent == ROOT_ID {
            let id = self.shares.container_id(name).ok_or(Errno::NOENT)?;
            return reply.put(&uncached(entry(id, synthetic_attr(id))));
        }
        let share = self.shares.share_in(parent, name).ok_or(Errno::NOENT)?;
        let stat = stat_fd(&share.root)?;
        let key = InodeKey::new(&share, &stat);
        let inode = match self.inodes.lookup(&key, (parent, c"")) {
            Some(inode) => inode,
            None => {
                let fd = share.root.try_clone().map_err(|_| Errno::NFILE)?;
                let kind = file_type(&stat);
                let submount = kind == FileType::Directory;
                // A share's root is on no view of the host's kernel: `SharesHandle::add` has checked it.
                let kernel_view = false;
                self.inodes.insert(FoundInode { key, fd, kind, share, submount, kernel_view, last_name: None })?.inode
            }
        };
        reply.put(&uncached(entry_of(&inode, &stat)))
    }

    /// Looks up the entry `name` of a directory of a share.
    pub(super) fn lookup_child(&self, parent: &InodeFd, name: &CStr) -> Result<(Arc<Inode>, Statx), Errno> {
        if parent.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        if parent.kernel_view {
            return Err(Errno::NOENT);
        }
        // Most lookups are of inodes that the guest already knows. These do not need a descriptor.
        let stat = stat_entry(parent, name)?;
        if let Some(inode) = self.inodes.lookup(&InodeKey::new(&parent.share, &stat), (parent.id, name)) {
            return Ok((inode, stat));
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        self.insert_fd(fd, (parent, name)).map(|(inode, stat)| (inode.inode, stat))
    }

    /// Looks up the entry `name` of a directory, whose `O_PATH` descriptor is `fd`. `EACCES` for a file of a view of the
    /// host's kernel.
    fn insert_fd(&self, fd: OwnedFd, (parent, name): (&InodeFd, &CStr)) -> Result<(InodeFd, Statx), Errno> {
        let stat = stat_fd(&fd)?;
        let key = InodeKey::new(&parent.share, &stat);
        let kind = file_type(&stat);
        let submount = kind == FileType::Directory && !key.same_mount(&parent.key);
        // A file system can only begin where a mount begins.
        let kernel_view = !key.same_mount_id(&parent.key) && is_kernel_view(&fd, kind)?;
        let last_name = key.is_unpinned().then(|| (parent.id, name.to_owned()));
        let share = Arc::clone(&parent.share);
        let inode = self.inodes.insert(FoundInode { key, fd, kind, share, submount, kernel_view, last_name })?;
        Ok((inode, stat))
    }

    /// Looks up the new file `file` in the directory `parent`. The name is empty for `O_TMPFILE`.
    pub(super) fn insert_new_file(&self, file: &OwnedFd, entry: (&InodeFd, &CStr)) -> Result<(InodeFd, Statx), Errno> {
        let path = rustix::fs::openat(CWD, fd_name(file), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        self.insert_fd(path, entry)
    }

    /// Creates an entry in the request's directory with the caller's ids, and looks it up.
    fn create_entry(
        &self,
        worker: &mut Worker,
        request: &Request<'_>,
        (name, umask): (&CStr, u32),
        reply: &mut Reply<'_>,
        make: impl FnOnce(BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let parent = self.writable_inode(request.header.nodeid)?;
        worker.create_as(&request.owner()?, umask, || make(parent.as_fd()))?;
        let (inode, stat) = self.lookup_child(&parent, name)?;
        reply.put(&entry_of(&inode, &stat))
    }

    pub(super) fn mknod(
        &self,
        worker: &mut Worker,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let MknodIn { mode, rdev, umask, .. } = request.take()?;
        let name = request.last_name()?;
        let kind = FileType::from_raw_mode(mode);
        if matches!(kind, FileType::Directory | FileType::Symlink | FileType::Unknown) {
            return Err(Errno::INVAL);
        }
        let mode = creation_mode(&self.writable_inode(request.header.nodeid)?, mode, &request.owner()?)?;
        let device = decode_device(rdev);
        let owner = request.owner()?;
        self.create_entry(worker, request, (name, umask), reply, |parent| {
            match (rustix::fs::mknodat(parent, name, kind, mode, device), &self.node_maker) {
                (Err(Errno::PERM), Some(maker)) if is_device(kind, device) => {
                    let (uid, gid) = (owner.uid, owner.gid);
                    let mode = kind.as_raw_mode() | mode.bits();
                    let name = name.to_bytes().to_vec();
                    maker.make(&MakeNode { uid, gid, umask, mode, device: rdev, name }, parent)
                }
                (result, _) => result,
            }
        })
    }

    pub(super) fn mkdir(
        &self,
        worker: &mut Worker,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let MkdirIn { mode, umask } = request.take()?;
        let name = request.last_name()?;
        let mode = Mode::from_raw_mode(mode & 0o7777);
        self.create_entry(worker, request, (name, umask), reply, |parent| rustix::fs::mkdirat(parent, name, mode))
    }

    pub(super) fn symlink(
        &self,
        worker: &mut Worker,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let name = request.name()?;
        let target = request.target()?;
        self.create_entry(worker, request, (name, 0), reply, |parent| rustix::fs::symlinkat(target, parent, name))
    }

    pub(super) fn link(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let LinkIn { oldnodeid } = request.take()?;
        let name = request.last_name()?;
        let parent = self.writable_inode(request.header.nodeid)?;
        let inode = self.writable_inode(oldnodeid)?;
        if inode.share.id != parent.share.id {
            return Err(Errno::XDEV);
        }
        rustix::fs::linkat(CWD, fd_name(&inode), &parent, name, AtFlags::SYMLINK_FOLLOW)?;
        let (inode, stat) = self.lookup_child(&parent, name)?;
        reply.put(&entry_of(&inode, &stat))
    }

    pub(super) fn unlink(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let name = request.last_name()?;
        let parent = self.writable_inode(request.header.nodeid)?;
        let flags = if request.header.opcode == op::RMDIR { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(&parent, name, flags)
    }

    pub(super) fn rename(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let (newdir, flags) = match request.header.opcode {
            op::RENAME => (request.take::<RenameIn>()?.newdir, RenameFlags::empty()),
            _ => {
                let Rename2In { newdir, flags, .. } = request.take()?;
                (newdir, RenameFlags::from_bits_retain(flags))
            }
        };
        let name = request.name()?;
        let new_name = request.last_name()?;
        let parent = self.writable_inode(request.header.nodeid)?;
        let new_parent = self.writable_inode(newdir)?;
        if parent.share.id != new_parent.share.id {
            return Err(Errno::XDEV);
        }
        rustix::fs::renameat_with(&parent, name, &new_parent, new_name, flags)?;
        self.update_moved_name(&new_parent, new_name);
        if flags.contains(RenameFlags::EXCHANGE) {
            self.update_moved_name(&parent, name);
        }
        Ok(())
    }

    /// Stores the new name of the entry `name` of `parent`, if the inode is known by its last name only.
    fn update_moved_name(&self, parent: &InodeFd, name: &CStr) {
        if let (true, Ok(stat)) = (parent.key.is_unpinned(), stat_entry(parent, name)) {
            self.inodes.update_name(&InodeKey::new(&parent.share, &stat), (parent.id, name));
        }
    }
}

/// Whether `fd`, a file of type `kind`, is on a view of the host's kernel. Such a directory is empty for the guest. Any
/// other file is `EACCES`.
pub(super) fn is_kernel_view(fd: &OwnedFd, kind: FileType) -> Result<bool, Errno> {
    match (kernel_view(fd)?, kind) {
        (None, _) => Ok(false),
        (Some(_), FileType::Directory) => Ok(true),
        (Some(_), _) => Err(Errno::ACCESS),
    }
}

/// The permissions of a file that `owner` creates in `parent`. In a setgid directory of a group that the owner is not
/// in, only root can create a setgid file.
pub(super) fn creation_mode(parent: &InodeFd, mode: u32, owner: &Owner) -> Result<Mode, Errno> {
    let mode = Mode::from_raw_mode(mode & 0o7777);
    if !mode.contains(Mode::SGID | Mode::XGRP) || owner.uid == 0 {
        return Ok(mode);
    }
    let directory = parent.stat()?;
    let inherits = Mode::from_raw_mode(directory.stx_mode.into()).contains(Mode::SGID);
    let foreign = inherits && !owner.in_group(directory.stx_gid);
    Ok(if foreign { mode.difference(Mode::SGID) } else { mode })
}

/// The reply's entry for an inode.
pub(super) fn entry_of(inode: &Inode, stat: &Statx) -> EntryOut {
    entry(inode.id, attr_of(inode, stat))
}

/// An entry whose name the guest does not cache, because the same name may be a different share at any moment.
fn uncached(entry: EntryOut) -> EntryOut {
    EntryOut { entry_valid: 0, ..entry }
}

fn entry(nodeid: u64, attr: crate::fs::protocol::wire::Attr) -> EntryOut {
    EntryOut { nodeid, entry_valid: CACHE_SECONDS, attr_valid: CACHE_SECONDS, attr, ..EntryOut::default() }
}
