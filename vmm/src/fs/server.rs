//! The FUSE server: one request in, at most one reply out.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use super::FsError;
use super::buffers::{Buffers, Payload, Reply};
use super::handles::Handles;
use super::inodes::Inodes;
use super::request::Request;
use super::shares::SharesHandle;
use super::wire::{
    BatchForgetIn, ForgetIn, ForgetOne, IN_HEADER, InHeader, InitIn, InitOut, MAJOR, MAX_DATA, MAX_PAGES, MINOR,
    OLDEST_MINOR, WriteIn, init, op,
};
use super::worker::{Descriptors, Worker};

/// Most bytes of arguments any request has, data of `WRITE` aside: an extended attribute with its name.
const MAX_ARGS: usize = (64 << 10) + (4 << 10);

/// What the server asks of a guest kernel that offers it. What is left out, and why:
/// `WRITEBACK_CACHE` (the guest would not see the host change a file's size and times), `POSIX_LOCKS` and `FLOCK_LOCKS`
/// (locks are the guest kernel's; sandboxes do not share them), `NO_OPEN_SUPPORT` (an open file outlives its name),
/// `EXPORT_SUPPORT` (needs lookups of `.` and `..`; `NO_EXPORT_SUPPORT` besides says that file handles, which hold node ids, mean
/// nothing later: an overlayfs would store them), `ATOMIC_O_TRUNC` (Linux would have a program that runs truncated
/// before it finds that such a file must not be).
const WANTED: u64 = init::ASYNC_READ
    | init::BIG_WRITES
    | init::DONT_MASK
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::POSIX_ACL
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::SUBMOUNTS
    | init::HANDLE_KILLPRIV_V2
    | init::SETXATTR_EXT
    | init::INIT_EXT
    | init::CREATE_SUPP_GROUP
    | init::DIRECT_IO_ALLOW_MMAP
    | init::NO_EXPORT_SUPPORT
    | init::ALLOW_IDMAP;

/// Set beside the negotiated flags once a session has begun; no `INIT` flag is as high.
const STARTED: u64 = 1 << 63;

/// Requests that wait for a disk more often than not, or may work for long.
const SLOW: [u32; 5] = [op::FSYNC, op::FSYNCDIR, op::SYNCFS, op::FALLOCATE, op::COPY_FILE_RANGE];

/// How many descriptors a server may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Inodes the guest has looked up and not forgotten.
    pub inodes: usize,
    /// Files and directories the guest has open.
    pub handles: usize,
}

/// Serves a tree of shares over FUSE. Any number of [`Worker`]s may call [`Server::handle`] at once.
#[derive(Debug)]
pub struct Server {
    pub(super) shares: SharesHandle,
    pub(super) inodes: Inodes,
    pub(super) handles: Handles,
    pub(super) descriptors: Descriptors,
    session: AtomicU64,
}

impl Server {
    /// A server of `shares` whose guest has not begun a session.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn new(shares: SharesHandle, limits: Limits) -> Result<Self, FsError> {
        Ok(Self {
            shares,
            inodes: Inodes::new(limits.inodes),
            handles: Handles::new(limits.handles),
            descriptors: Descriptors::open()?,
            session: AtomicU64::new(0),
        })
    }

    /// The process's descriptors, which workers need.
    #[must_use]
    pub fn descriptors(&self) -> &Descriptors {
        &self.descriptors
    }

    /// Serves the request in `request` and writes the reply to `reply`. Returns the reply's length in bytes: 0 where
    /// the request has none, is too malformed to answer, or `reply` is too short for any answer.
    pub fn handle(&self, worker: &mut Worker, request: Buffers<'_>, reply: Buffers<'_>) -> usize {
        self.serve(worker, request, reply, true).unwrap_or(0)
    }

    /// As [`Server::handle`], but serves nothing that would wait for a disk: `None`, and nothing has been done.
    pub fn try_handle(&self, worker: &mut Worker, request: Buffers<'_>, reply: Buffers<'_>) -> Option<usize> {
        self.serve(worker, request, reply, false)
    }

    fn serve(&self, worker: &mut Worker, mut request: Buffers<'_>, reply: Buffers<'_>, patient: bool) -> Option<usize> {
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
            // Every request is answered as soon as the host can; there is nothing to interrupt.
            op::INTERRUPT => Some(0),
            _ => {
                let Some(mut reply) = Reply::new(reply) else { return Some(0) };
                match self.answer(worker, header, request, &mut reply, patient) {
                    Err(Errno::AGAIN) if !patient => None,
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
        patient: bool,
    ) -> Result<(), Errno> {
        check_length(&header, &body)?;
        if header.opcode != op::INIT && self.session() == 0 {
            return Err(Errno::IO);
        }
        if !patient && SLOW.contains(&header.opcode) {
            return Err(Errno::AGAIN);
        }
        if header.opcode == op::WRITE {
            let mut args = [0; size_of::<WriteIn>()];
            if !body.read(&mut args) {
                return Err(Errno::INVAL);
            }
            let args: WriteIn = zerocopy::transmute!(args);
            return self.write(worker, (&header, &args, patient), Payload::new(body, args.size)?, reply);
        }
        with_args(worker, header, patient, body, |worker, request| self.dispatch(worker, request, reply))
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
            op::FALLOCATE => self.fallocate(request),
            op::LSEEK => self.lseek(request, reply),
            op::COPY_FILE_RANGE => self.copy_file_range(request, reply),
            op::SYNCFS => self.syncfs(request),
            op::OPENDIR => self.opendir(request, reply),
            op::READDIR => self.readdir(request, reply, false),
            op::READDIRPLUS => self.readdir(request, reply, true),
            op::SETXATTR => self.setxattr(request),
            op::GETXATTR => self.getxattr(worker, request, reply),
            op::LISTXATTR => self.listxattr(worker, request, reply),
            op::REMOVEXATTR => self.removexattr(request),
            // FLUSH too: the guest's kernel then leaves it out, as local file systems do nothing at close.
            _ => Err(Errno::NOSYS),
        }
    }

    /// Begins a session. A guest that begins a second one has lost the first (it rebooted): what it held is let go.
    fn init(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let offer: InitIn = request.take()?;
        if offer.major > MAJOR {
            return reply.put(&InitOut { major: MAJOR, minor: MINOR, ..InitOut::default() });
        }
        if offer.major < MAJOR || offer.minor < OLDEST_MINOR {
            return Err(Errno::PROTO);
        }
        let mut offered = u64::from(offer.flags);
        if offered & init::INIT_EXT != 0 {
            offered |= u64::from(request.take::<u32>()?) << 32;
        }
        let flags = offered & WANTED;
        let [low, high] = zerocopy::transmute!(flags.to_le());
        reply.put(&InitOut {
            major: MAJOR,
            minor: MINOR.min(offer.minor),
            max_readahead: offer.max_readahead,
            flags: low,
            max_background: 64,
            congestion_threshold: 48,
            max_write: MAX_DATA,
            time_gran: 1,
            max_pages: MAX_PAGES,
            flags2: high,
            ..InitOut::default()
        })?;
        self.destroy()?;
        self.session.store(flags | STARTED, Ordering::Release);
        Ok(())
    }

    /// Ends the session: every inode and handle is let go.
    fn destroy(&self) -> Result<(), Errno> {
        self.session.store(0, Ordering::Release);
        self.handles.clear();
        self.inodes.clear();
        Ok(())
    }

    fn forget(&self, worker: &mut Worker, header: InHeader, body: Buffers<'_>) -> Result<(), Errno> {
        check_length(&header, &body)?;
        with_args(worker, header, true, body, |_, request| {
            if header.opcode == op::FORGET {
                let ForgetIn { nlookup } = request.take()?;
                self.inodes.forget(header.nodeid, nlookup);
                return Ok(());
            }
            let BatchForgetIn { count, .. } = request.take()?;
            for _ in 0..count {
                let ForgetOne { nodeid, nlookup } = request.take()?;
                self.inodes.forget(nodeid, nlookup);
            }
            Ok(())
        })
    }

    /// The session's negotiated flags and [`STARTED`]; 0 where there is none.
    pub(super) fn session(&self) -> u64 {
        self.session.load(Ordering::Acquire)
    }

    /// Continues a saved session.
    pub(super) fn restore_session(&self, session: u64) {
        self.session.store(session, Ordering::Release);
    }

    /// Whether the session has the `INIT` flag.
    pub(super) fn negotiated(&self, flag: u64) -> bool {
        self.session() & flag != 0
    }
}

/// Checks the length a header claims against what is there.
fn check_length(header: &InHeader, body: &Buffers<'_>) -> Result<(), Errno> {
    let claimed = usize::try_from(header.len).map_err(|_| Errno::INVAL)?;
    if claimed == IN_HEADER + body.len() { Ok(()) } else { Err(Errno::INVAL) }
}

/// Copies the arguments out of guest memory, where they could change while being looked at, and calls `serve`.
fn with_args<T>(
    worker: &mut Worker,
    header: InHeader,
    patient: bool,
    mut body: Buffers<'_>,
    serve: impl FnOnce(&mut Worker, &mut Request<'_>) -> Result<T, Errno>,
) -> Result<T, Errno> {
    if body.len() > MAX_ARGS {
        return Err(Errno::INVAL);
    }
    let mut args = std::mem::take(&mut worker.args);
    args.resize(body.len(), 0);
    body.read(&mut args);
    let result = Request::new(header, patient, &args).and_then(|mut request| serve(worker, &mut request));
    worker.args = args;
    result
}
