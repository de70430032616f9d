//! Regular files: `OPEN`, `CREATE`, `TMPFILE`, `READ`, `WRITE` and others on open files.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, FallocateFlags, FileType, Mode, OFlags, SeekFrom, Statx};
use rustix::io::Errno;

use super::Server;
use super::names::{creation_mode, entry_of};
use crate::fs::protocol::reply::{Payload, Reply};
use crate::fs::protocol::request::Request;
use crate::fs::protocol::wire::{
    CopyFileRangeIn, CreateIn, FOPEN_KEEP_CACHE, FSYNC_DATA, FallocateIn, FsyncIn, InHeader, LseekIn, LseekOut,
    OPEN_KILL_SUIDGID, OpenIn, OpenOut, ReadIn, ReleaseIn, WRITE_KILL_SUIDGID, WriteIn, WriteOut, op,
};
use crate::fs::tables::handles::Handle;
use crate::fs::tables::inode::{ContentVersion, Inode, InodeFd, stat_fd};
use crate::fs::tables::shares::is_synthetic;
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
        let file = worker.without_fsetid(kill, || self.open_file(&inode, flags))??;
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
                    let file = worker.without_fsetid(kill, || self.open_file(&inode, flags))??;
                    self.insert_file_handle(inode, file, flags)
                });
                self.reply_created(&inode, &stat, opened, reply)
            }
            Err(errno) => Err(errno),
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
    /// root on the host, `O_NOATIME` only works for the user's own files.
    pub(super) fn reopen(&self, inode: &InodeFd, flags: OFlags) -> Result<OwnedFd, Errno> {
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

    pub(super) fn read(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let ReadIn { fh, offset, size, .. } = request.take()?;
        let handle = self.handles.get(fh, request.header.nodeid)?;
        let flags = if request.may_block { 0 } else { libc::RWF_NOWAIT };
        match reply.put_file(handle.file()?, offset, size, flags) {
            // Not every file system supports `RWF_NOWAIT`.
            Err(Errno::OPNOTSUPP) if flags != 0 => reply.put_file(handle.file()?, offset, size, 0),
            result => result,
        }
    }

    pub(super) fn write(
        &self,
        worker: &mut Worker,
        (header, args, may_block): (&InHeader, &WriteIn, bool),
        payload: Payload<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let handle = self.handles.get(args.fh, header.nodeid)?;
        let file = handle.file()?;
        if !may_block && guest_flags(args.flags).intersects(OFlags::SYNC | OFlags::DSYNC) {
            return Err(Errno::AGAIN);
        }
        // Each write says whether it appends, because the guest can change the flag with `fcntl`.
        let append = guest_flags(args.flags).contains(OFlags::APPEND);
        let flags = if append { libc::RWF_APPEND } else { 0 };
        let privileged = Mode::SUID | Mode::SGID;
        let kill = args.write_flags & WRITE_KILL_SUIDGID != 0
            && Mode::from_raw_mode(stat_fd(file)?.stx_mode.into()).intersects(privileged);
        let written = worker.without_fsetid(kill, || payload.write_to(file, args.offset, flags))??;
        let size = u32::try_from(written).map_err(|_| Errno::IO)?;
        reply.put(&WriteOut { size, padding: 0 })
    }

    pub(super) fn fsync(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let FsyncIn { fh, fsync_flags, .. } = request.take()?;
        let handle = self.handles.get(fh, request.header.nodeid)?;
        match (request.header.opcode, &*handle) {
            (op::FSYNCDIR, Handle::Synthetic { .. }) => Ok(()),
            (op::FSYNCDIR, handle) => rustix::fs::fsync(&*handle.stream()?),
            (_, handle) if fsync_flags & FSYNC_DATA != 0 => rustix::fs::fdatasync(handle.file()?),
            (_, handle) => rustix::fs::fsync(handle.file()?),
        }
    }

    pub(super) fn syncfs(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        if is_synthetic(request.header.nodeid) {
            return Ok(());
        }
        let inode = self.inode(request.header.nodeid)?;
        let flags = match inode.kind {
            FileType::Directory => OFlags::DIRECTORY,
            FileType::RegularFile => OFlags::empty(),
            _ => return Err(Errno::INVAL),
        };
        let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        rustix::fs::syncfs(rustix::fs::openat(CWD, fd_name(&inode), flags, Mode::empty())?)
    }

    /// The guest's kernel has setuid and setgid cleared with a separate request before this one: see
    /// [`Server::setattr`].
    pub(super) fn fallocate(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let FallocateIn { fh, offset, length, mode, .. } = request.take()?;
        let handle = self.handles.get(fh, request.header.nodeid)?;
        rustix::fs::fallocate(handle.file()?, FallocateFlags::from_bits_retain(mode), offset, length)
    }

    pub(super) fn lseek(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let LseekIn { fh, offset, whence, .. } = request.take()?;
        let handle = self.handles.get(fh, request.header.nodeid)?;
        let position = match i32::try_from(whence) {
            Ok(libc::SEEK_DATA) => SeekFrom::Data(offset),
            Ok(libc::SEEK_HOLE) => SeekFrom::Hole(offset),
            // The guest's kernel computes other positions itself.
            _ => return Err(Errno::INVAL),
        };
        let offset = rustix::fs::seek(handle.file()?, position)?;
        reply.put(&LseekOut { offset })
    }

    /// As for [`Server::fallocate`], setuid and setgid were cleared before.
    pub(super) fn copy_file_range(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let args: CopyFileRangeIn = request.take()?;
        let source = self.handles.get(args.fh_in, request.header.nodeid)?;
        let target = self.handles.get(args.fh_out, args.nodeid_out)?;
        if args.flags != 0 {
            return Err(Errno::INVAL);
        }
        let (mut from, mut to) = (args.off_in, args.off_out);
        // The reply's size has 32 bits.
        let length = usize::try_from(args.len.min(1 << 30)).map_err(|_| Errno::INVAL)?;
        let (from_file, to_file) = (source.file()?, target.file()?);
        let copied = rustix::fs::copy_file_range(from_file, Some(&mut from), to_file, Some(&mut to), length)?;
        let size = u32::try_from(copied).map_err(|_| Errno::IO)?;
        reply.put(&WriteOut { size, padding: 0 })
    }
}

/// The flags of `open(2)` in a request.
fn guest_flags(flags: u32) -> OFlags {
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
