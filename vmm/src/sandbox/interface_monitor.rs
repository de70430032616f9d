//! Watches the interfaces of the sandbox's network namespace while its container runs. Engines add and remove interfaces there
//! without notice. The kernel reports every change over rtnetlink(7). When no change has come for a while, the helper runs
//! the runtime, which attaches new interfaces to the guest and detaches removed ones.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};

/// Time without a change before the runtime is run. Changes come in bursts: an interface is created, renamed, given
/// addresses, brought up and given routes.
const MIN_QUIET: Duration = Duration::from_millis(200);

/// Upper limit of that time. A run of the runtime that fails makes changes of its own, which cause the next run; each failure
/// doubles the time.
const MAX_QUIET: Duration = Duration::from_secs(60);

/// Multicast groups of rtnetlink(7) for interfaces, addresses and routes.
const GROUPS: libc::c_int = libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE;

/// Most messages that are read in one go, so that a flood of changes does not hold the event loop up.
const BATCH: usize = 64;

/// State of the monitor.
#[derive(Debug)]
pub(super) struct InterfaceMonitor {
    /// The netlink socket; `None` if interfaces are not monitored.
    changes: Option<OwnedFd>,
    is_watched: bool,
    /// Time without a change before the runtime is run.
    quiet: Duration,
    /// When the runtime has to be run.
    due: Option<Instant>,
}

/// Opens the netlink socket of a monitor.
///
/// # Errors
/// The socket cannot be opened.
pub fn open_changes() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS.cast_unsigned()))?;
    Ok(socket)
}

impl InterfaceMonitor {
    /// A monitor of the changes that `changes` reports. Without a socket it does nothing.
    pub(super) fn new(changes: Option<OwnedFd>) -> Self {
        Self { changes, is_watched: false, quiet: MIN_QUIET, due: None }
    }

    /// Reads and discards the kernel's messages, and schedules a run of the runtime, which reads the new state itself.
    pub(super) fn on_change(&mut self) {
        self.discard_changes();
        self.due = Some(Instant::now() + self.quiet);
    }

    fn discard_changes(&self) {
        let Some(changes) = &self.changes else { return };
        let mut message = [0; 8192];
        for _ in 0..BATCH {
            // ENOBUFS reports lost messages, which are changes too.
            match recv(changes.as_raw_fd(), &mut message, MsgFlags::empty()) {
                Ok(_) | Err(Errno::ENOBUFS) => {}
                Err(_) => return,
            }
        }
    }

    /// When the runtime has to be run.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Whether the runtime has to be run now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// The runtime was started.
    pub(super) fn clear_due(&mut self) {
        self.due = None;
    }

    /// Makes the event loop report changes with `token`, from the start of the main container on: the client that starts it knows
    /// the interfaces that exist before. Has no effect if the event loop does already.
    ///
    /// # Errors
    /// The event loop refused. It is not asked again.
    pub(super) fn watch(&mut self, token: u32, ops: &mut EventOps) -> event_manager::Result<()> {
        if self.is_watched {
            return Ok(());
        }
        self.is_watched = true;
        self.discard_changes();
        let Some(changes) = &self.changes else { return Ok(()) };
        ops.add(Events::with_data_raw(changes.as_raw_fd(), token, EventSet::IN))
    }

    /// The runtime succeeded.
    pub(super) fn reset_delay(&mut self) {
        self.quiet = MIN_QUIET;
    }

    /// The runtime failed.
    pub(super) fn double_delay(&mut self) {
        self.quiet = (2 * self.quiet).min(MAX_QUIET);
    }
}
