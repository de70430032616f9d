//! The FUSE session: `INIT`, `DESTROY`, and the lookup counts that `FORGET` lowers.

use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::{Server, check_length, with_args};
use crate::fs::protocol::buffers::Buffers;
use crate::fs::protocol::reply::Reply;
use crate::fs::protocol::request::Request;
use crate::fs::protocol::wire::{
    BatchForgetIn, ForgetIn, ForgetOne, InHeader, InitIn, InitOut, MAJOR, MAX_DATA, MAX_PAGES, MINOR, OLDEST_MINOR,
    init, op,
};
use crate::fs::worker::Worker;

/// What the server asks of a guest kernel that offers it. What is left out, and why:
/// `WRITEBACK_CACHE` (the guest would not see the host change a file's size and times), `POSIX_LOCKS` and `FLOCK_LOCKS`
/// (locks are the guest kernel's; sandboxes do not share them), `NO_OPEN_SUPPORT` (an open file outlives its name),
/// `EXPORT_SUPPORT` (needs lookups of `.` and `..`; `NO_EXPORT_SUPPORT` besides says that file handles, which hold node ids, mean
/// nothing later: an overlayfs would store them), `ATOMIC_O_TRUNC` (Linux would have a program that runs truncated
/// before it finds that such a file must not be).
const SUPPORTED_FLAGS: u64 = init::ASYNC_READ
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

impl Server {
    /// Begins a session. A guest that begins a second one has lost the first (it rebooted): what it held is let go.
    pub(super) fn init(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
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
        let flags = offered & SUPPORTED_FLAGS;
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
    pub(super) fn destroy(&self) -> Result<(), Errno> {
        self.session.store(0, Ordering::Release);
        self.handles.clear();
        self.inodes.clear();
        Ok(())
    }

    pub(super) fn forget(&self, worker: &mut Worker, header: InHeader, body: Buffers<'_>) -> Result<(), Errno> {
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
