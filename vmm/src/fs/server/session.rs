//! The FUSE session: `INIT`, `DESTROY`, and the lookup counts that `FORGET` decrements.

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

/// The `INIT` flags that the server accepts. These are left out:
/// - `WRITEBACK_CACHE`: the guest would not see the host change a file's size and times.
/// - `POSIX_LOCKS` and `FLOCK_LOCKS`: the guest's kernel handles locks; sandboxes do not share them.
/// - `NO_OPEN_SUPPORT`: an open file outlives its name.
/// - `EXPORT_SUPPORT`: it requires lookups of `.` and `..`. `NO_EXPORT_SUPPORT` also says that file handles, which
///   contain node ids, are not persistent; an overlayfs would store them.
/// - `ATOMIC_O_TRUNC`: Linux would truncate a program that is being executed before it finds that this is not allowed.
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

/// Set in addition to the negotiated flags while there is a session. No `INIT` flag has this bit.
const STARTED: u64 = 1 << 63;

impl Server {
    /// `INIT`: starts a session. If there is one already, the guest has rebooted, and the session's inodes and file
    /// handles are released.
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

    /// `DESTROY`: ends the session and releases all inodes and file handles.
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

    /// The session's negotiated flags and [`STARTED`]; 0 without a session.
    pub(super) fn session(&self) -> u64 {
        self.session.load(Ordering::Acquire)
    }

    /// Continues a saved session.
    pub(super) fn restore_session(&self, session: u64) {
        self.session.store(session, Ordering::Release);
    }

    /// Whether the session has negotiated the `INIT` flag `flag`.
    pub(super) fn negotiated(&self, flag: u64) -> bool {
        self.session() & flag != 0
    }
}
