//! Attributes.

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Statx, StatxTimestamp, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
};
use rustix::io::Errno;

use super::super::buffers::Reply;
use super::super::handles::Handle;
use super::super::inodes::{Place, stat_fd};
use super::super::request::Request;
use super::super::server::Server;
use super::super::shares::{FIRST_CONTAINER_ID, is_synthetic};
use super::super::wire::{
    ATTR_SUBMOUNT, Attr, AttrOut, GETATTR_FH, GetattrIn, ROOT_ID, SetattrIn, StatfsOut, StatxIn, StatxOut, Time, fattr,
};
use super::super::worker::{Worker, name_of};
use super::CACHE_SECONDS;

impl Server {
    pub(in crate::fs) fn getattr(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let GetattrIn { getattr_flags, fh, .. } = request.take()?;
        let id = request.header.nodeid;
        if is_synthetic(id) {
            return if self.shares.holds(id) { reply.put(&attr_out(synthetic_attr(id))) } else { Err(Errno::STALE) };
        }
        let (node, stat) = self.stat_open(id, (getattr_flags & GETATTR_FH != 0).then_some(fh))?;
        reply.put(&attr_out(attr_of(&stat, node.submount)))
    }

    pub(in crate::fs) fn statx(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let StatxIn { getattr_flags, fh, .. } = request.take()?;
        let id = request.header.nodeid;
        if is_synthetic(id) {
            return if self.shares.holds(id) { reply.put(&synthetic_statx(id)) } else { Err(Errno::STALE) };
        }
        let (_, stat) = self.stat_open(id, (getattr_flags & GETATTR_FH != 0).then_some(fh))?;
        reply.put(&statx_out(&stat))
    }

    /// The attributes of inode `id`, through the handle `fh` where there is one.
    fn stat_open(&self, id: u64, fh: Option<u64>) -> Result<(Place, Statx), Errno> {
        let node = self.node(id)?;
        let stat = match fh {
            Some(fh) => match &*self.handles.get(fh, id)? {
                Handle::File { file, .. } => stat_fd(file)?,
                Handle::Directory { .. } | Handle::Synthetic { .. } => node.stat()?,
            },
            None => node.stat()?,
        };
        Ok((node, stat))
    }

    /// Changes attributes. A request that names none is how a guest's kernel, before a change of the contents, has setuid, setgid
    /// and file capabilities cleared by a caller that may not keep them.
    pub(in crate::fs) fn setattr(
        &self,
        worker: &mut Worker,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let wish: SetattrIn = request.take()?;
        let node = self.writable_node(request.header.nodeid)?;
        let fh = wish.valid & fattr::FH != 0;
        let handle = if fh { Some(self.handles.get(wish.fh, node.id)?) } else { None };
        if wish.valid & fattr::ALL == 0 {
            // The host's kernel does so for a change of the owner that changes nothing.
            worker.without_fsetid(true, || chown(&node, None, None))??;
        }
        // The owner first: changing it clears setuid and setgid, which the wish may set.
        set_owner(&node, &wish)?;
        if wish.valid & fattr::MODE != 0 {
            rustix::fs::chmodat(CWD, name_of(&node), Mode::from_raw_mode(wish.mode & 0o7777), AtFlags::empty())?;
        }
        if wish.valid & fattr::SIZE != 0 {
            let kill = wish.valid & fattr::KILL_SUIDGID != 0;
            worker.without_fsetid(kill, || truncate(&node, handle.as_deref(), wish.size))??;
        }
        set_times(&node, &wish)?;
        reply.put(&attr_out(attr_of(&node.stat()?, node.submount)))
    }

    pub(in crate::fs) fn statfs(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let id = request.header.nodeid;
        if is_synthetic(id) {
            return reply.put(&StatfsOut { bsize: 4096, frsize: 4096, namelen: 255, ..StatfsOut::default() });
        }
        let host = rustix::fs::fstatvfs(self.node(id)?)?;
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

    pub(in crate::fs) fn readlink(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let node = self.node(request.header.nodeid)?;
        if node.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let target = rustix::fs::readlinkat(&node, c"", Vec::new())?;
        reply.put_bytes(target.to_bytes())
    }
}

fn set_owner(node: &Place, wish: &SetattrIn) -> Result<(), Errno> {
    // The host takes -1 for "no change".
    let wanted = |flag, id: u32| match id {
        _ if wish.valid & flag == 0 => Ok(None),
        u32::MAX => Err(Errno::INVAL),
        id => Ok(Some(id)),
    };
    let (uid, gid) = (wanted(fattr::UID, wish.uid)?, wanted(fattr::GID, wish.gid)?);
    if uid.is_none() && gid.is_none() {
        return Ok(());
    }
    chown(node, uid, gid)
}

fn chown(node: &Place, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    rustix::fs::chownat(node, c"", uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::EMPTY_PATH)
}

fn truncate(node: &Place, handle: Option<&Handle>, size: u64) -> Result<(), Errno> {
    if let Some(handle) = handle {
        return rustix::fs::ftruncate(handle.file()?, size);
    }
    match node.kind {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Errno::ISDIR),
        _ => return Err(Errno::INVAL),
    }
    let size = i64::try_from(size).map_err(|_| Errno::FBIG)?;
    let name = name_of(node);
    let result = nix::unistd::truncate(name.as_c_str(), size);
    result.map_err(|errno| Errno::from_raw_os_error(errno as i32))
}

fn set_times(node: &Place, wish: &SetattrIn) -> Result<(), Errno> {
    if wish.valid & (fattr::ATIME | fattr::MTIME) == 0 {
        return Ok(());
    }
    let time = |given: u32, now: u32, seconds: u64, nanoseconds: u32| match wish.valid {
        valid if valid & given == 0 => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        valid if valid & now != 0 => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        _ => Timespec { tv_sec: signed(seconds), tv_nsec: nanoseconds.into() },
    };
    let times = Timestamps {
        last_access: time(fattr::ATIME, fattr::ATIME_NOW, wish.atime, wish.atimensec),
        last_modification: time(fattr::MTIME, fattr::MTIME_NOW, wish.mtime, wish.mtimensec),
    };
    rustix::fs::utimensat(CWD, name_of(node), &times, AtFlags::empty())
}

fn attr_out(attr: Attr) -> AttrOut {
    AttrOut { attr_valid: CACHE_SECONDS, attr, ..AttrOut::default() }
}

/// The protocol's form of host attributes.
pub(super) fn attr_of(stat: &Statx, submount: bool) -> Attr {
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
        // The kernel's 32-bit encoding (`new_encode_dev`).
        rdev: (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
        blksize: stat.stx_blksize,
        flags: if submount { ATTR_SUBMOUNT } else { 0 },
    }
}

/// The attributes of the synthetic directory `id`.
pub(super) fn synthetic_attr(id: u64) -> Attr {
    let ino = if id == ROOT_ID { ROOT_ID } else { id - FIRST_CONTAINER_ID + ROOT_ID + 1 };
    Attr { ino, mode: libc::S_IFDIR | 0o555, nlink: 2, blksize: 4096, ..Attr::default() }
}

fn synthetic_statx(id: u64) -> StatxOut {
    let Attr { ino, mode, nlink, blksize, .. } = synthetic_attr(id);
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

/// Seconds since the epoch travel as unsigned numbers; those before it wrap.
fn unsigned(seconds: i64) -> u64 {
    u64::from_ne_bytes(seconds.to_ne_bytes())
}

fn signed(seconds: u64) -> i64 {
    i64::from_ne_bytes(seconds.to_ne_bytes())
}
