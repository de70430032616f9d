//! Interfaces that come to the sandbox's network namespace while its container runs, or go: engines put them there and tell
//! nobody. The kernel tells of every change, and when there was none for a while the runtime is called to lead into the guest
//! what is new, and to take away what is gone.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};

use super::helper::Helper;
use super::{CHANGES, FOLLOWER, Sandbox};

/// Changes come in bursts: an interface is made, named, given addresses, brought up and given routes.
const QUIET: Duration = Duration::from_millis(200);

/// A failed attempt makes changes of its own, and calls for the next: each is later than the one before, up to this.
const MAX_QUIET: Duration = Duration::from_secs(60);

/// Groups of rtnetlink(7) that tell of interfaces, their addresses and routes.
const GROUPS: libc::c_int = libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE;

/// Whoever has the guest follow its network namespace.
#[derive(Debug)]
pub(super) struct Follower {
    /// The runtime's program and arguments.
    command: Vec<OsString>,
    /// Where the kernel tells of changes, from the start of the main container on.
    changes: Option<OwnedFd>,
    watched: bool,
    /// How long there have to be no changes.
    quiet: Duration,
    /// When the runtime is to be called.
    due: Option<Instant>,
    /// The runtime at work.
    helper: Option<Helper>,
}

impl Follower {
    /// One that calls `command`; none, where that is empty.
    pub(super) fn new(command: Vec<OsString>) -> Self {
        Self { command, changes: None, watched: false, quiet: QUIET, due: None, helper: None }
    }

    /// From now on changes count. What has come until now is known to whoever starts the container.
    fn begin(&mut self) -> io::Result<()> {
        if self.changes.is_some() || self.command.is_empty() {
            return Ok(());
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS.cast_unsigned()))?;
        self.changes = Some(socket);
        Ok(())
    }

    /// When there is something to do, unless the runtime is at it.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due.filter(|_| self.helper.is_none())
    }

    fn call(&mut self) -> io::Result<()> {
        self.due = None;
        let Some((program, arguments)) = self.command.split_first() else { return Ok(()) };
        let mut command = Command::new(program);
        command.args(arguments);
        self.helper = Some(Helper::spawn(command)?);
        Ok(())
    }
}

impl Sandbox {
    /// The main container is about to start.
    pub(super) fn follow_interfaces(&mut self) {
        if let Err(error) = self.follower.begin() {
            tracing::warn!(%error, "cannot hear of new network interfaces");
        }
    }

    /// What the kernel has to say does not matter, only that it has said something.
    pub(super) fn hear_changes(&mut self) {
        let Some(changes) = &self.follower.changes else { return };
        let mut message = [0; 8192];
        // Messages that were lost for want of room are changes, too.
        while let Ok(_) | Err(Errno::ENOBUFS) = recv(changes.as_raw_fd(), &mut message, MsgFlags::empty()) {}
        self.follower.due = Some(Instant::now() + self.follower.quiet);
    }

    /// Calls the runtime if it is time, and watches what there is to watch.
    pub(super) fn settle_follower(&mut self, ops: &mut EventOps) {
        let follower = &mut self.follower;
        if let Some(changes) = follower.changes.as_ref().filter(|_| !follower.watched) {
            follower.watched = true;
            if let Err(error) = ops.add(Events::with_data_raw(changes.as_raw_fd(), CHANGES, EventSet::IN)) {
                tracing::warn!(%error, "cannot watch for new network interfaces");
            }
        }
        let is_due = follower.deadline().is_some_and(|due| due <= Instant::now());
        if is_due
            && self.lost.is_none()
            && let Err(error) = follower.call()
        {
            tracing::warn!(%error, "cannot call the runtime for new network interfaces");
        }
        let Some(helper) = &mut follower.helper else { return };
        if let Err(error) = helper.watch(FOLLOWER, ops) {
            tracing::warn!(%error, "cannot watch the runtime");
            follower.helper.take().into_iter().for_each(Helper::abandon);
        }
    }

    /// The runtime has done its work, or says why not.
    pub(super) fn end_follower(&mut self, ops: &mut EventOps) {
        let Some(helper) = self.follower.helper.take() else { return };
        match helper.bury(ops) {
            Ok((status, _)) if status.success() => self.follower.quiet = QUIET,
            Ok((_, words)) => {
                self.follower.quiet = (2 * self.follower.quiet).min(MAX_QUIET);
                tracing::warn!("the guest does not follow a change of network interfaces: {}", words.trim_end());
            }
            Err(error) => tracing::warn!(%error, "cannot tell whether a change of network interfaces was followed"),
        }
    }
}
