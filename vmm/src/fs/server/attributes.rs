//! Attributes: `GETATTR`, `STATX`, `SETATTR`, `STATFS` and `READLINK`.

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Statx, StatxTimestamp, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
};
use rustix::io::Errno;

use super::CACHE_SECONDS;
use super::Server;
use super::contents::change_contents;
use crate::fs::protocol::reply::Reply;
use crate::fs::protocol::request::Request;
use crate::fs::protocol::wire::{
    ATTR_SUBMOUNT, Attr, AttrOut, GETATTR_FH, GetattrIn, ROOT_ID, SetattrIn, StatfsOut, StatxIn, StatxOut, Time, fattr,
};
use crate::fs::tables::handles::Handle;
use crate::fs::tables::inode::{Inode, InodeFd, stat_fd};
use crate::fs::tables::shares::{FIRST_CONTAINER_ID, is_synthetic};
use crate::fs::worker::Worker;
use crate::fs::worker::proc_fds::fd_name;

impl Server {
    pub(super) fn getattr(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let GetattrIn { getattr_flags, fh, .. } = request.take()?;
        let id = request.header.nodeid;
        if is_synthetic(id) {
            return if self.shares.contains(id) { reply.put(&attr_out(synthetic_attr(id))) } else { Err(Errno::STALE) };
        }
        let (inode, stat) = self.stat_inode(id, (getattr_flags & GETATTR_FH != 0).then_some(fh))?;
        reply.put(&attr_out(attr_of(&inode, &stat)))
    }

    pub(super) fn statx(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let StatxIn { getattr_flags, fh, .. } = request.take()?;
        let id = request.header.nodeid;
        if is_synthetic(id) {
            let statx = || synthetic_statx(synthetic_attr(id));
            return if self.shares.contains(id) { reply.put(&statx()) } else { Err(Errno::STALE) };
        }
        let (inode, stat) = self.stat_inode(id, (getattr_flags & GETATTR_FH != 0).then_some(fh))?;
        if inode.kernel_view {
            return reply.put(&synthetic_statx(attr_of(&inode, &stat)));
        }
        reply.put(&statx_out(&stat))
    }

    /// The attributes of inode `id`, read through the file handle `fh` if there is one.
    fn stat_inode(&self, id: u64, fh: Option<u64>) -> Result<(InodeFd, Statx), Errno> {
        let inode = self.inodes.get_with_fd(id)?;
        let stat = match fh {
            Some(fh) => match &*self.handles.get(fh, id)? {
                Handle::File { file, .. } => stat_fd(file)?,
                Handle::Directory { .. } | Handle::Synthetic { .. } => inode.stat()?,
            },
            None => inode.stat()?,
        };
        Ok((inode, stat))
    }

    /// `SETATTR`. A request without attributes has setuid, setgid and file capabilities cleared. The guest's kernel
    /// sends it before a change of the contents by a caller that may not keep them.
    pub(super) fn setattr(
        &self,
        worker: &mut Worker,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let args: SetattrIn = request.take()?;
        let inode = self.writable_inode(request.header.nodeid)?;
        let fh = args.valid & fattr::FH != 0;
        let handle = if fh { Some(self.handles.get(args.fh, inode.id)?) } else { None };
        if args.valid & fattr::ALL == 0 {
            // The host's kernel clears them on a change of the owner that changes nothing.
            worker.without_fsetid(true, || chown(&inode, None, None))??;
        }
        // The owner is changed first: this clears setuid and setgid, which the new mode may set.
        set_owner(&inode, &args)?;
        if args.valid & fattr::MODE != 0 {
            rustix::fs::chmodat(CWD, fd_name(&inode), Mode::from_raw_mode(args.mode & 0o7777), AtFlags::empty())?;
        }
        if args.valid & fattr::SIZE != 0 {
            let kill = args.valid & fattr::KILL_SUIDGID != 0;
            change_contents(worker, kill, &inode, || truncate(&inode, handle.as_deref(), args.size))?;
        }
        set_times(&inode, &args)?;
        reply.put(&attr_out(attr_of(&inode, &inode.stat()?)))
    }

    pub(super) fn statfs(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let id = request.header.nodeid;
        if self.has_no_host_file(id)? {
            return reply.put(&StatfsOut { bsize: 4096, frsize: 4096, namelen: 255, ..StatfsOut::default() });
        }
        let host = rustix::fs::fstatvfs(self.inode(id)?)?;
        let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        reply.put(&StatfsOut {
            blocks: host.f_blocks,
            bfree: host.f_bfree,
            bavail: host.f_bavail,
            files: host.f_files,
            ffree: host.f_ffree,
            bsize: small(host.f_bsize),
            namelen: small(host.f_namemax),
            frsize: small(host.f_frsize),
            ..StatfsOut::default()
        })
    }

    pub(super) fn readlink(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let inode = self.inode(request.header.nodeid)?;
        if inode.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let target = rustix::fs::readlinkat(&inode, c"", Vec::new())?;
        reply.put_bytes(target.to_bytes())
    }
}

fn set_owner(inode: &InodeFd, args: &SetattrIn) -> Result<(), Errno> {
    // The host takes -1 as "no change".
    let wanted = |flag, id: u32| match id {
        _ if args.valid & flag == 0 => Ok(None),
        u32::MAX => Err(Errno::INVAL),
        id => Ok(Some(id)),
    };
    let (uid, gid) = (wanted(fattr::UID, args.uid)?, wanted(fattr::GID, args.gid)?);
    if uid.is_none() && gid.is_none() {
        return Ok(());
    }
    chown(inode, uid, gid)
}

fn chown(inode: &InodeFd, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    rustix::fs::chownat(inode, c"", uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::EMPTY_PATH)
}

fn truncate(inode: &InodeFd, handle: Option<&Handle>, size: u64) -> Result<(), Errno> {
    if let Some(handle) = handle {
        return rustix::fs::ftruncate(handle.file()?, size);
    }
    match inode.kind {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Errno::ISDIR),
        _ => return Err(Errno::INVAL),
    }
    let size = i64::try_from(size).map_err(|_| Errno::FBIG)?;
    let name = fd_name(inode);
    let result = nix::unistd::truncate(name.as_c_str(), size);
    result.map_err(|errno| Errno::from_raw_os_error(errno as i32))
}

fn set_times(inode: &InodeFd, args: &SetattrIn) -> Result<(), Errno> {
    if args.valid & (fattr::ATIME | fattr::MTIME) == 0 {
        return Ok(());
    }
    let time = |given: u32, now: u32, seconds: u64, nanoseconds: u32| match args.valid {
        valid if valid & given == 0 => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        valid if valid & now != 0 => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        _ => Timespec { tv_sec: signed(seconds), tv_nsec: nanoseconds.into() },
    };
    let times = Timestamps {
        last_access: time(fattr::ATIME, fattr::ATIME_NOW, args.atime, args.atimensec),
        last_modification: time(fattr::MTIME, fattr::MTIME_NOW, args.mtime, args.mtimensec),
    };
    rustix::fs::utimensat(CWD, fd_name(inode), &times, AtFlags::empty())
}

fn attr_out(attr: Attr) -> AttrOut {
    AttrOut { attr_valid: CACHE_SECONDS, attr, ..AttrOut::default() }
}

/// The attributes of `inode` in the protocol's format. `stat` are the host's.
pub(super) fn attr_of(inode: &Inode, stat: &Statx) -> Attr {
    let flags = if inode.submount { ATTR_SUBMOUNT } else { 0 };
    if inode.kernel_view {
        // Even the host's attributes tell of its state: the links of the root of a proc are the number of processes.
        return Attr { flags, ..empty_directory(stat.stx_ino) };
    }
    let (major, minor) = (stat.stx_rdev_major, stat.stx_rdev_minor);
    Attr {
        ino: stat.stx_ino,
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        atime: unsigned(stat.stx_atime.tv_sec),
        mtime: unsigned(stat.stx_mtime.tv_sec),
        ctime: unsigned(stat.stx_ctime.tv_sec),
        atimensec: stat.stx_atime.tv_nsec,
        mtimensec: stat.stx_mtime.tv_nsec,
        ctimensec: stat.stx_ctime.tv_nsec,
        mode: stat.stx_mode.into(),
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        // The kernel's 32-bit encoding of device numbers (`new_encode_dev`).
        rdev: (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
        blksize: stat.stx_blksize,
        flags,
    }
}

/// The attributes of the synthetic directory `id`.
pub(super) fn synthetic_attr(id: u64) -> Attr {
    let ino = if id == ROOT_ID { ROOT_ID } else { id - FIRST_CONTAINER_ID + ROOT_ID + 1 };
    empty_directory(ino)
}

fn empty_directory(ino: u64) -> Attr {
    Attr { ino, mode: libc::S_IFDIR | 0o555, nlink: 2, blksize: 4096, ..Attr::default() }
}

fn synthetic_statx(attr: Attr) -> StatxOut {
    let Attr { ino, mode, nlink, blksize, .. } = attr;
    let mode = u16::try_from(mode).unwrap_or_default();
    StatxOut {
        attr_valid: CACHE_SECONDS,
        mask: libc::STATX_BASIC_STATS,
        ino,
        mode,
        nlink,
        blksize,
        ..StatxOut::default()
    }
}

fn statx_out(stat: &Statx) -> StatxOut {
    let time = |from: StatxTimestamp| Time { tv_sec: from.tv_sec, tv_nsec: from.tv_nsec, reserved: 0 };
    StatxOut {
        attr_valid: CACHE_SECONDS,
        mask: stat.stx_mask & (libc::STATX_BASIC_STATS | libc::STATX_BTIME),
        blksize: stat.stx_blksize,
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        mode: stat.stx_mode,
        ino: stat.stx_ino,
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        atime: time(stat.stx_atime),
        btime: time(stat.stx_btime),
        ctime: time(stat.stx_ctime),
        mtime: time(stat.stx_mtime),
        rdev_major: stat.stx_rdev_major,
        rdev_minor: stat.stx_rdev_minor,
        ..StatxOut::default()
    }
}

/// The protocol sends seconds since the epoch as unsigned numbers; times before the epoch wrap around.
fn unsigned(seconds: i64) -> u64 {
    u64::from_ne_bytes(seconds.to_ne_bytes())
}

fn signed(seconds: u64) -> i64 {
    i64::from_ne_bytes(seconds.to_ne_bytes())
}
