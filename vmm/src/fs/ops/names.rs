//! Names: looking them up, making and removing them.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Statx};
use rustix::io::Errno;

use super::super::buffers::Reply;
use super::super::inodes::{Found, Key, Node, Place, kind_of, stat_entry, stat_fd};
use super::super::request::Request;
use super::super::server::Server;
use super::super::shares::is_synthetic;
use super::super::wire::{EntryOut, LinkIn, MkdirIn, MknodIn, ROOT_ID, Rename2In, RenameIn, op};
use super::super::worker::{Owner, Worker, name_of};
use super::CACHE_SECONDS;
use super::attributes::{attr_of, synthetic_attr};

impl Server {
    pub(in crate::fs) fn lookup(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let name = request.last_name()?;
        let parent = request.header.nodeid;
        if is_synthetic(parent) {
            return self.lookup_synthetic(parent, name, reply);
        }
        let (node, stat) = self.child(&self.node(parent)?, name)?;
        reply.put(&entry_of(&node, &stat))
    }

    fn lookup_synthetic(&self, parent: u64, name: &CStr, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let name = name.to_str().map_err(|_| Errno::NOENT)?;
        if parent == ROOT_ID {
            let id = self.shares.container_id(name).ok_or(Errno::NOENT)?;
            return reply.put(&unkept(entry(id, synthetic_attr(id))));
        }
        let share = self.shares.share_in(parent, name).ok_or(Errno::NOENT)?;
        let stat = stat_fd(&share.root)?;
        let key = Key::new(&share, &stat);
        let node = match self.inodes.look_up(&key, (parent, c"")) {
            Some(node) => node,
            None => {
                let fd = share.root.try_clone().map_err(|_| Errno::NFILE)?;
                let kind = kind_of(&stat);
                let submount = kind == FileType::Directory;
                self.inodes.insert(Found { key, fd, kind, share, submount, seen: None })?.node
            }
        };
        reply.put(&unkept(entry_of(&node, &stat)))
    }

    /// Looks up the entry `name` of a share's directory.
    pub(super) fn child(&self, parent: &Place, name: &CStr) -> Result<(Arc<Node>, Statx), Errno> {
        if parent.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        // Most lookups are of what the guest already knows, and then no descriptor is needed.
        let stat = stat_entry(parent, name)?;
        if let Some(node) = self.inodes.look_up(&Key::new(&parent.share, &stat), (parent.id, name)) {
            return Ok((node, stat));
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        self.adopt(fd, (parent, name)).map(|(place, stat)| (place.node, stat))
    }

    /// Looks up what the `O_PATH` descriptor `fd` stands for, the entry `name` of a directory.
    fn adopt(&self, fd: OwnedFd, (parent, name): (&Place, &CStr)) -> Result<(Place, Statx), Errno> {
        let stat = stat_fd(&fd)?;
        let key = Key::new(&parent.share, &stat);
        let kind = kind_of(&stat);
        let submount = kind == FileType::Directory && !key.same_mount(&parent.key);
        let seen = key.may_go().then(|| (parent.id, name.to_owned()));
        let place = self.inodes.insert(Found { key, fd, kind, share: Arc::clone(&parent.share), submount, seen })?;
        Ok((place, stat))
    }

    /// Looks up the open file `file`, made in the directory `parent`; its name is empty where it has none yet.
    pub(super) fn adopt_file(&self, file: &OwnedFd, entry: (&Place, &CStr)) -> Result<(Place, Statx), Errno> {
        let path = rustix::fs::openat(CWD, name_of(file), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        self.adopt(path, entry)
    }

    /// Makes an entry in the request's directory, as the caller, and looks it up.
    fn make(
        &self,
        worker: &mut Worker,
        request: &Request<'_>,
        (name, umask): (&CStr, u32),
        reply: &mut Reply<'_>,
        make: impl FnOnce(BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let parent = self.writable_node(request.header.nodeid)?;
        worker.create_as(&request.owner()?, umask, || make(parent.as_fd()))?;
        let (node, stat) = self.child(&parent, name)?;
        reply.put(&entry_of(&node, &stat))
    }

    pub(in crate::fs) fn mknod(
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
        let mode = creation_mode(&self.writable_node(request.header.nodeid)?, mode, &request.owner()?)?;
        let device = rustix::fs::makedev((rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00));
        self.make(worker, request, (name, umask), reply, |parent| rustix::fs::mknodat(parent, name, kind, mode, device))
    }

    pub(in crate::fs) fn mkdir(
        &self,
        worker: &mut Worker,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let MkdirIn { mode, umask } = request.take()?;
        let name = request.last_name()?;
        let mode = Mode::from_raw_mode(mode & 0o7777);
        self.make(worker, request, (name, umask), reply, |parent| rustix::fs::mkdirat(parent, name, mode))
    }

    pub(in crate::fs) fn symlink(
        &self,
        worker: &mut Worker,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let name = request.name()?;
        let target = request.target()?;
        self.make(worker, request, (name, 0), reply, |parent| rustix::fs::symlinkat(target, parent, name))
    }

    pub(in crate::fs) fn link(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let LinkIn { oldnodeid } = request.take()?;
        let name = request.last_name()?;
        let parent = self.writable_node(request.header.nodeid)?;
        let node = self.writable_node(oldnodeid)?;
        if node.share.id != parent.share.id {
            return Err(Errno::XDEV);
        }
        rustix::fs::linkat(CWD, name_of(&node), &parent, name, AtFlags::SYMLINK_FOLLOW)?;
        let (node, stat) = self.child(&parent, name)?;
        reply.put(&entry_of(&node, &stat))
    }

    pub(in crate::fs) fn unlink(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let name = request.last_name()?;
        let parent = self.writable_node(request.header.nodeid)?;
        let flags = if request.header.opcode == op::RMDIR { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(&parent, name, flags)
    }

    pub(in crate::fs) fn rename(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let (newdir, flags) = match request.header.opcode {
            op::RENAME => (request.take::<RenameIn>()?.newdir, RenameFlags::empty()),
            _ => {
                let Rename2In { newdir, flags, .. } = request.take()?;
                (newdir, RenameFlags::from_bits_retain(flags))
            }
        };
        let name = request.name()?;
        let new_name = request.last_name()?;
        let parent = self.writable_node(request.header.nodeid)?;
        let new_parent = self.writable_node(newdir)?;
        if parent.share.id != new_parent.share.id {
            return Err(Errno::XDEV);
        }
        rustix::fs::renameat_with(&parent, name, &new_parent, new_name, flags)?;
        self.note_move(&new_parent, new_name);
        if flags.contains(RenameFlags::EXCHANGE) {
            self.note_move(&parent, name);
        }
        Ok(())
    }

    /// What came to be the entry `name` of `parent` may be an inode that is only known by where it was seen.
    fn note_move(&self, parent: &Place, name: &CStr) {
        if let (true, Ok(stat)) = (parent.key.may_go(), stat_entry(parent, name)) {
            self.inodes.moved(&Key::new(&parent.share, &stat), (parent.id, name));
        }
    }
}

/// The permissions of a file that `owner` makes in `parent`: in a setgid directory of a group it is not in, nobody but
/// root makes a setgid program.
pub(super) fn creation_mode(parent: &Place, mode: u32, owner: &Owner) -> Result<Mode, Errno> {
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
pub(super) fn entry_of(node: &Node, stat: &Statx) -> EntryOut {
    entry(node.id, attr_of(stat, node.submount))
}

/// An entry that the guest asks for every time: what has the name of a share may be another one the next moment.
fn unkept(entry: EntryOut) -> EntryOut {
    EntryOut { entry_valid: 0, ..entry }
}

fn entry(nodeid: u64, attr: super::super::wire::Attr) -> EntryOut {
    EntryOut { nodeid, entry_valid: CACHE_SECONDS, attr_valid: CACHE_SECONDS, attr, ..EntryOut::default() }
}
