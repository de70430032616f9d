//! Requests for open files: `READ`, `WRITE`, `FSYNC`, `FALLOCATE`, `LSEEK` and `COPY_FILE_RANGE`; and `SYNCFS`.

use rustix::fs::{CWD, FallocateFlags, FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::Server;
use super::contents::change_contents;
use super::open::guest_flags;
use crate::fs::protocol::reply::{Payload, Reply};
use crate::fs::protocol::request::Request;
use crate::fs::protocol::wire::{
    CopyFileRangeIn, FSYNC_DATA, FallocateIn, FsyncIn, InHeader, LseekIn, LseekOut, ReadIn, WRITE_KILL_SUIDGID,
    WriteIn, WriteOut, op,
};
use crate::fs::tables::handles::Handle;
use crate::fs::worker::Worker;
use crate::fs::worker::proc_fds::fd_name;

impl Server {
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
        let kill = args.write_flags & WRITE_KILL_SUIDGID != 0;
        let written = change_contents(worker, kill, &file, || payload.write_to(file, args.offset, flags))?;
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
        if self.has_no_host_file(request.header.nodeid)? {
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
    pub(super) fn fallocate(&self, worker: &mut Worker, request: &mut Request<'_>) -> Result<(), Errno> {
        let FallocateIn { fh, offset, length, mode, .. } = request.take()?;
        let handle = self.handles.get(fh, request.header.nodeid)?;
        let (file, mode) = (handle.file()?, FallocateFlags::from_bits_retain(mode));
        change_contents(worker, false, &file, || rustix::fs::fallocate(file, mode, offset, length))
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
    pub(super) fn copy_file_range(
        &self,
        worker: &mut Worker,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
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
        let copied = change_contents(worker, false, &to_file, || {
            rustix::fs::copy_file_range(from_file, Some(&mut from), to_file, Some(&mut to), length)
        })?;
        let size = u32::try_from(copied).map_err(|_| Errno::IO)?;
        reply.put(&WriteOut { size, padding: 0 })
    }
}
