//! The FUSE server. A request has at most one reply.

mod attributes;
mod contents;
mod directories;
mod files;
mod limits;
mod names;
mod node_maker;
mod open;
mod session;
pub(super) mod state;
mod xattrs;

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;

use rustix::io::Errno;

pub use self::limits::Limits;
use self::node_maker::NodeMaker;
use crate::fs::protocol::buffers::Buffers;
use crate::fs::protocol::reply::{Payload, Reply};
use crate::fs::protocol::request::Request;
use crate::fs::protocol::wire::{IN_HEADER, InHeader, WriteIn, op};
use crate::fs::tables::directory_stream::BlockBudget;
use crate::fs::tables::handles::Handles;
use crate::fs::tables::inode::InodeFd;
use crate::fs::tables::inodes::Inodes;
use crate::fs::tables::shares::{SharesHandle, is_synthetic};
use crate::fs::worker::Worker;
use crate::fs::worker::proc_fds::ProcFds;

/// The most bytes of arguments of a request, without the data of `WRITE`: an extended attribute with its name.
const MAX_ARGS: usize = (64 << 10) + (4 << 10);

/// The most blocks of entries, of 8 KiB each, that open directories keep between requests.
const MAX_DIRECTORY_BLOCKS: usize = 1024;

/// Requests that usually wait for a disk, or that may take long.
const BLOCKING_OPS: [u32; 5] = [op::FSYNC, op::FSYNCDIR, op::SYNCFS, op::FALLOCATE, op::COPY_FILE_RANGE];

/// Serves a tree of shares over FUSE. Several [`Worker`]s can call [`Server::handle`] at the same time.
#[derive(Debug)]
pub struct Server {
    shares: SharesHandle,
    inodes: Inodes,
    handles: Handles,
    directory_blocks: BlockBudget,
    proc_fds: ProcFds,
    node_maker: Option<NodeMaker>,
    session: AtomicU64,
}

/// How long the guest may cache names and attributes, in seconds. The guest sees changes made by the host after this
/// time at the latest.
const CACHE_SECONDS: u64 = 1;

impl Server {
    /// A server of `shares` without a FUSE session. It has device nodes created over `node_maker`, a connection to the helper
    /// ([`crate::helper::MakeNode`]), if it may not create them itself.
    #[must_use]
    pub fn new(shares: SharesHandle, limits: Limits, proc_fds: ProcFds, node_maker: Option<OwnedFd>) -> Self {
        Self {
            shares,
            inodes: Inodes::new(limits.inodes),
            handles: Handles::new(limits.handles),
            directory_blocks: BlockBudget::new(MAX_DIRECTORY_BLOCKS),
            proc_fds,
            node_maker: node_maker.map(NodeMaker::new),
            session: AtomicU64::new(0),
        }
    }

    /// The process's open file descriptors, which workers need.
    #[must_use]
    pub fn proc_fds(&self) -> &ProcFds {
        &self.proc_fds
    }

    /// Handles the request in `request` and writes its reply to `reply`. Returns the reply's length in bytes. It is 0
    /// if the request has no reply or no valid header, or if a header does not fit in `reply`.
    pub fn handle(&self, worker: &mut Worker, request: Buffers<'_>, reply: Buffers<'_>) -> usize {
        self.serve(worker, request, reply, true).unwrap_or(0)
    }

    /// Like [`Server::handle`], but does not wait for a disk. If the request would have to wait, the result is `None`
    /// and the request has had no effect.
    pub fn handle_nonblocking(&self, worker: &mut Worker, request: Buffers<'_>, reply: Buffers<'_>) -> Option<usize> {
        self.serve(worker, request, reply, false)
    }

    fn serve(
        &self,
        worker: &mut Worker,
        mut request: Buffers<'_>,
        reply: Buffers<'_>,
        may_block: bool,
    ) -> Option<usize> {
        let mut header = [0; IN_HEADER];
        if !request.read(&mut header) {
            return Some(0);
        }
        let header: InHeader = zerocopy::transmute!(header);
        match header.opcode {
            op::FORGET | op::BATCH_FORGET => {
                if let Err(errno) = self.forget(worker, header, request) {
                    tracing::debug!("malformed FORGET: {errno}");
                }
                Some(0)
            }
            // There are no requests to interrupt: the host completes each as soon as it can.
            op::INTERRUPT => Some(0),
            _ => {
                let Some(mut reply) = Reply::new(reply) else { return Some(0) };
                match self.answer(worker, header, request, &mut reply, may_block) {
                    Err(Errno::AGAIN) if !may_block => None,
                    result => Some(reply.finish(header.unique, result)),
                }
            }
        }
    }

    fn answer(
        &self,
        worker: &mut Worker,
        header: InHeader,
        mut body: Buffers<'_>,
        reply: &mut Reply<'_>,
        may_block: bool,
    ) -> Result<(), Errno> {
        check_length(&header, &body)?;
        if header.opcode != op::INIT && self.session() == 0 {
            return Err(Errno::IO);
        }
        if !may_block && BLOCKING_OPS.contains(&header.opcode) {
            return Err(Errno::AGAIN);
        }
        if header.opcode == op::WRITE {
            let mut args = [0; size_of::<WriteIn>()];
            if !body.read(&mut args) {
                return Err(Errno::INVAL);
            }
            let args: WriteIn = zerocopy::transmute!(args);
            return self.write(worker, (&header, &args, may_block), Payload::new(body, args.size)?, reply);
        }
        with_args(worker, header, may_block, body, |worker, request| self.dispatch(worker, request, reply))
    }

    fn dispatch(&self, worker: &mut Worker, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        match request.header.opcode {
            op::INIT => self.init(request, reply),
            op::DESTROY => self.destroy(),
            op::LOOKUP => self.lookup(request, reply),
            op::GETATTR => self.getattr(request, reply),
            op::STATX => self.statx(request, reply),
            op::SETATTR => self.setattr(worker, request, reply),
            op::STATFS => self.statfs(request, reply),
            op::READLINK => self.readlink(request, reply),
            op::SYMLINK => self.symlink(worker, request, reply),
            op::MKNOD => self.mknod(worker, request, reply),
            op::MKDIR => self.mkdir(worker, request, reply),
            op::LINK => self.link(request, reply),
            op::UNLINK | op::RMDIR => self.unlink(request),
            op::RENAME | op::RENAME2 => self.rename(request),
            op::OPEN => self.open(worker, request, reply),
            op::CREATE => self.create(worker, request, reply),
            op::TMPFILE => self.tmpfile(worker, request, reply),
            op::READ => self.read(request, reply),
            op::RELEASE | op::RELEASEDIR => self.release(request),
            op::FSYNC | op::FSYNCDIR => self.fsync(request),
            op::FALLOCATE => self.fallocate(worker, request),
            op::LSEEK => self.lseek(request, reply),
            op::COPY_FILE_RANGE => self.copy_file_range(worker, request, reply),
            op::SYNCFS => self.syncfs(request),
            op::OPENDIR => self.opendir(request, reply),
            op::READDIR => self.readdir(request, reply, false),
            op::READDIRPLUS => self.readdir(request, reply, true),
            op::SETXATTR => self.setxattr(request),
            op::GETXATTR => self.getxattr(worker, request, reply),
            op::LISTXATTR => self.listxattr(worker, request, reply),
            op::REMOVEXATTR => self.removexattr(request),
            // This includes FLUSH. Linux then stops sending it; local file systems do nothing at close either.
            _ => Err(Errno::NOSYS),
        }
    }

    /// The inode `id` of a share, whose file on the host may be used. `EROFS` for a synthetic directory, and for the
    /// empty directory in the place of a view of the host's kernel: neither can be changed.
    fn inode(&self, id: u64) -> Result<InodeFd, Errno> {
        if is_synthetic(id) {
            return Err(Errno::ROFS);
        }
        let inode = self.inodes.get_with_fd(id)?;
        if inode.kernel_view { Err(Errno::ROFS) } else { Ok(inode) }
    }

    /// Whether `id` is a directory that has nothing of the host: a synthetic one, or the empty one in the place of a
    /// view of the host's kernel.
    fn has_no_host_file(&self, id: u64) -> Result<bool, Errno> {
        Ok(is_synthetic(id) || self.inodes.get(id)?.kernel_view)
    }

    /// The inode `id` of a share that the guest can change. `EROFS` if the share is read-only.
    fn writable_inode(&self, id: u64) -> Result<InodeFd, Errno> {
        let inode = self.inode(id)?;
        if inode.share.options.read_only { Err(Errno::ROFS) } else { Ok(inode) }
    }
}

/// Checks that the length in the header equals the length of the request.
fn check_length(header: &InHeader, body: &Buffers<'_>) -> Result<(), Errno> {
    let claimed = usize::try_from(header.len).map_err(|_| Errno::INVAL)?;
    if claimed == IN_HEADER + body.len() { Ok(()) } else { Err(Errno::INVAL) }
}

/// Copies the arguments out of guest memory, where the guest could change them at any time, and calls `serve`.
fn with_args<T>(
    worker: &mut Worker,
    header: InHeader,
    may_block: bool,
    mut body: Buffers<'_>,
    serve: impl FnOnce(&mut Worker, &mut Request<'_>) -> Result<T, Errno>,
) -> Result<T, Errno> {
    if body.len() > MAX_ARGS {
        return Err(Errno::INVAL);
    }
    let mut args = std::mem::take(&mut worker.args);
    args.resize(body.len(), 0);
    body.read(&mut args);
    let result = Request::new(header, may_block, &args).and_then(|mut request| serve(worker, &mut request));
    worker.args = args;
    result
}
