//! Watches the interfaces of the sandbox's network namespace while its container runs. Engines add and remove interfaces there
//! without notice. The kernel reports every change over rtnetlink(7). When no change has come for a while, the monitor runs
//! the runtime, which attaches new interfaces to the guest and detaches removed ones.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};

use super::ChildProcess;

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

/// State of the monitor.
#[derive(Debug)]
pub(in crate::sandbox) struct InterfaceMonitor {
    /// The runtime's program and arguments; empty if interfaces are not monitored.
    command: Vec<OsString>,
    /// The netlink socket, from the start of the main container on.
    changes: Option<OwnedFd>,
    is_watched: bool,
    /// Time without a change before the runtime is run.
    quiet: Duration,
    /// When the runtime has to be run.
    due: Option<Instant>,
    /// The runtime, if it runs.
    child: Option<ChildProcess>,
}

impl InterfaceMonitor {
    /// A monitor that runs `command`. With an empty command it does nothing.
    pub(in crate::sandbox) fn new(command: Vec<OsString>) -> Self {
        Self { command, changes: None, is_watched: false, quiet: MIN_QUIET, due: None, child: None }
    }

    /// Opens the netlink socket. The client that starts the container knows the interfaces that exist before.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub(in crate::sandbox) fn start(&mut self) -> io::Result<()> {
        if self.changes.is_some() || self.command.is_empty() {
            return Ok(());
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS.cast_unsigned()))?;
        self.changes = Some(socket);
        Ok(())
    }

    /// Reads and discards the kernel's messages, and schedules a run of the runtime, which reads the new state itself.
    pub(in crate::sandbox) fn on_change(&mut self) {
        let Some(changes) = &self.changes else { return };
        let mut message = [0; 8192];
        // ENOBUFS reports lost messages, which are changes too.
        while let Ok(_) | Err(Errno::ENOBUFS) = recv(changes.as_raw_fd(), &mut message, MsgFlags::empty()) {}
        self.due = Some(Instant::now() + self.quiet);
    }

    /// When the runtime has to be run; `None` while it runs.
    pub(in crate::sandbox) fn deadline(&self) -> Option<Instant> {
        self.due.filter(|_| self.child.is_none())
    }

    /// Whether the runtime has to be run now.
    pub(in crate::sandbox) fn is_due(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|due| due <= now)
    }

    /// Runs the runtime.
    ///
    /// # Errors
    /// The process cannot be started.
    pub(in crate::sandbox) fn run_command(&mut self) -> io::Result<()> {
        self.due = None;
        let Some((program, arguments)) = self.command.split_first() else { return Ok(()) };
        let mut command = Command::new(program);
        command.args(arguments);
        self.child = Some(ChildProcess::spawn(command)?);
        Ok(())
    }

    /// Makes the event loop report changes with `token`. Has no effect if it does already.
    ///
    /// # Errors
    /// The event loop refused. It is not asked again.
    pub(in crate::sandbox) fn watch_changes(&mut self, token: u32, ops: &mut EventOps) -> event_manager::Result<()> {
        let Some(changes) = self.changes.as_ref().filter(|_| !self.is_watched) else { return Ok(()) };
        self.is_watched = true;
        ops.add(Events::with_data_raw(changes.as_raw_fd(), token, EventSet::IN))
    }

    /// Makes the event loop report the end of the runtime with `token`. Kills a process that cannot be watched.
    ///
    /// # Errors
    /// The event loop refused.
    pub(in crate::sandbox) fn watch_child(&mut self, token: u32, ops: &mut EventOps) -> event_manager::Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        child.watch(token, ops).inspect_err(|_| self.child.take().into_iter().for_each(ChildProcess::kill))
    }

    /// Removes the runtime's process, to reap it.
    pub(in crate::sandbox) fn take_child(&mut self) -> Option<ChildProcess> {
        self.child.take()
    }

    /// The runtime succeeded.
    pub(in crate::sandbox) fn reset_delay(&mut self) {
        self.quiet = MIN_QUIET;
    }

    /// The runtime failed.
    pub(in crate::sandbox) fn double_delay(&mut self) {
        self.quiet = (2 * self.quiet).min(MAX_QUIET);
    }
}
