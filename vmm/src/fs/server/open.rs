//! Opening regular files: `OPEN`, `CREATE`, `TMPFILE` and `RELEASE`.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, FileType, Mode, OFlags, Statx};
use rustix::io::Errno;

use super::Server;
use super::contents::change_contents;
use super::names::{creation_mode, entry_of};
use crate::fs::protocol::reply::Reply;
use crate::fs::protocol::request::Request;
use crate::fs::protocol::wire::{CreateIn, FOPEN_KEEP_CACHE, OPEN_KILL_SUIDGID, OpenIn, OpenOut, ReleaseIn};
use crate::fs::tables::handles::Handle;
use crate::fs::tables::inode::{ContentVersion, Inode, InodeFd, stat_fd};
use crate::fs::worker::Worker;
use crate::fs::worker::proc_fds::fd_name;

/// The age of a file's change time at which it identifies the contents. Two changes within one tick of the host file
/// system's clock have the same times, and the coarsest file system's tick is this long.
const MIN_CTIME_AGE: Duration = Duration::from_secs(2);

impl Server {
    pub(super) fn open(
        &self,
        worker: &mut Worker,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let OpenIn { flags, open_flags } = request.take()?;
        let inode = self.inode(request.header.nodeid)?;
        let kill = open_flags & OPEN_KILL_SUIDGID != 0;
        let file = self.open_contents(worker, kill, &inode, flags)?;
        let out = self.insert_file_handle(inode, file, flags)?;
        reply.put(&out)
    }

    pub(super) fn create(
        &self,
        worker: &mut Worker,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let CreateIn { flags, mode, umask, open_flags } = request.take()?;
        let name = request.last_name()?;
        let parent = self.writable_inode(request.header.nodeid)?;
        let owner = request.owner()?;
        let mode = creation_mode(&parent, mode, &owner)?;
        // Always exclusive: an existing file, created by the host, may be a FIFO or a device.
        let host_flags = host_flags(flags) | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let made = worker.create_as(&owner, umask, || rustix::fs::openat(&parent, name, host_flags, mode));
        match made {
            Ok(file) => self.reply_new_file((&parent, name), file, flags, reply),
            Err(Errno::EXIST) if !guest_flags(flags).contains(OFlags::EXCL) => {
                let (inode, stat) = self.lookup_child(&parent, name)?;
                let kill = open_flags & OPEN_KILL_SUIDGID != 0;
                let opened = self.inodes.with_fd(inode.clone()).and_then(|inode| {
                    let file = self.open_contents(worker, kill, &inode, flags)?;
                    self.insert_file_handle(inode, file, flags)
                });
                self.reply_created(&inode, &stat, opened, reply)
            }
            Err(errno) => Err(errno),
        }
    }

    /// Opens a file for the guest, and truncates it if the flags say so.
    fn open_contents(&self, worker: &mut Worker, kill: bool, inode: &InodeFd, flags: u32) -> Result<OwnedFd, Errno> {
        match guest_flags(flags).contains(OFlags::TRUNC) {
            true => change_contents(worker, kill, inode, || self.open_file(inode, flags)),
            false => self.open_file(inode, flags),
        }
    }

    pub(super) fn tmpfile(
        &self,
        worker: &mut Worker,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let CreateIn { flags, mode, umask, .. } = request.take()?;
        let parent = self.writable_inode(request.header.nodeid)?;
        if parent.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let owner = request.owner()?;
        let mode = creation_mode(&parent, mode, &owner)?;
        let exclusive = guest_flags(flags) & OFlags::EXCL;
        let host_flags = host_flags(flags) | OFlags::TMPFILE | exclusive;
        let file = worker.create_as(&owner, umask, || rustix::fs::openat(CWD, fd_name(&parent), host_flags, mode))?;
        self.reply_new_file((&parent, c""), file, flags, reply)
    }

    /// Replies to `CREATE` and `TMPFILE` with the new `file`.
    fn reply_new_file(
        &self,
        entry: (&InodeFd, &CStr),
        file: OwnedFd,
        flags: u32,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let (inode, stat) = self.insert_new_file(&file, entry)?;
        let opened = self.handles.insert(Handle::File { inode: inode.clone(), file, flags });
        self.reply_created(&inode, &stat, opened.map(|fh| OpenOut { fh, ..OpenOut::default() }), reply)
    }

    /// Replies with an inode and its file handle. If the reply fails, the guest does not know of the lookup, so it is
    /// subtracted again.
    fn reply_created(
        &self,
        inode: &Inode,
        stat: &Statx,
        opened: Result<OpenOut, Errno>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let entry = entry_of(inode, stat);
        let result = opened.and_then(|out| reply.put(&entry).and_then(|()| reply.put(&out)));
        if result.is_err() {
            self.inodes.forget(inode.id, 1);
        }
        result
    }

    fn insert_file_handle(&self, inode: InodeFd, file: OwnedFd, flags: u32) -> Result<OpenOut, Errno> {
        let open_flags = if contents_unchanged(&inode, &file)? { FOPEN_KEEP_CACHE } else { 0 };
        let fh = self.handles.insert(Handle::File { inode, file, flags })?;
        Ok(OpenOut { fh, open_flags, ..OpenOut::default() })
    }

    /// Opens a regular file of a share. Other file types are never opened on the host: opening a FIFO would block, and
    /// opening a device may have effects.
    pub(super) fn open_file(&self, inode: &InodeFd, flags: u32) -> Result<OwnedFd, Errno> {
        match inode.kind {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        let guest = guest_flags(flags);
        let writes = guest.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC);
        if writes && inode.share.options.read_only {
            return Err(Errno::ROFS);
        }
        let truncate = guest & OFlags::TRUNC;
        self.reopen(inode, host_flags(flags) | truncate)
    }

    /// Opens the file of `inode` again. In a read-only share, the access time does not change, if possible: without
    /// root on the host, `O_NOATIME` only works for the user's own files. `EACCES` for a view of the host's kernel.
    pub(super) fn reopen(&self, inode: &InodeFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        if inode.kernel_view {
            return Err(Errno::ACCESS);
        }
        let open = |flags| rustix::fs::openat(&self.proc_fds, fd_name(inode), flags, Mode::empty());
        if !inode.share.options.read_only {
            return open(flags);
        }
        match open(flags | OFlags::NOATIME) {
            Err(Errno::PERM) => open(flags),
            result => result,
        }
    }

    pub(super) fn release(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let ReleaseIn { fh, .. } = request.take()?;
        self.handles.remove(fh, request.header.nodeid)
    }
}

/// The flags of `open(2)` in a request.
pub(super) fn guest_flags(flags: u32) -> OFlags {
    OFlags::from_bits_retain(flags)
}

/// The flags for `open(2)` on the host. Of the guest's flags, only the access mode and those for synchronous writes are
/// used.
fn host_flags(flags: u32) -> OFlags {
    let kept = OFlags::RDONLY | OFlags::WRONLY | OFlags::RDWR | OFlags::SYNC | OFlags::DSYNC;
    (guest_flags(flags) & kept) | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY
}

/// Whether the contents of `file`, an open file of `inode`, equal what the guest may have cached at its last `OPEN`.
/// Stores their current version.
fn contents_unchanged(inode: &Inode, file: &OwnedFd) -> Result<bool, Errno> {
    let stat = stat_fd(file)?;
    let version = ContentVersion {
        mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
        ctime: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
        size: stat.stx_size,
    };
    let mut cached = inode.cached_version.lock().unwrap_or_else(PoisonError::into_inner);
    let unchanged = *cached == Some(version);
    *cached = is_distinguishable(version.ctime).then_some(version);
    Ok(unchanged)
}

/// Whether a change at this moment would give the file another change time than `ctime`.
fn is_distinguishable((seconds, nanoseconds): (i64, u32)) -> bool {
    let since_epoch = u64::try_from(seconds).unwrap_or(0);
    let changed = SystemTime::UNIX_EPOCH + Duration::new(since_epoch, nanoseconds);
    SystemTime::now().duration_since(changed).is_ok_and(|age| age >= MIN_CTIME_AGE)
}
