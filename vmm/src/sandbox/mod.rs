//! The sandbox's controller: ties the control socket, the agent in the guest and the machine together.
//!
//! One subscriber of the event loop. Nothing in it blocks, and every queue in it is bounded, so that neither a client nor
//! the guest can hold up another.
//!
//! # The end
//! The sandbox ends with its main container's first process: when that process's output was handed over and everybody
//! who waited was answered, the VMM exits with its status (128 and the signal's number for a death by signal). The
//! other ends are exit status [`GUEST_DIED`]: a panic, a reset, a vCPU that cannot go on, an agent that is silent or
//! breaks its protocol; and the loss of the inherited client before the main container was created, when nobody
//! supervises the sandbox yet. Whoever waits is told a failure of kind `GuestDied` with the cause.
//!
//! # Signals
//! `SIGTERM`, `SIGINT`, `SIGHUP`, `SIGQUIT`, `SIGUSR1` and `SIGUSR2` to the VMM go to the main container's first process,
//! as if the VMM were that process. Before there is one, the first four end the sandbox with 128 and the signal's number.
//! `SIGWINCH` has the size of the main container's terminal taken over.

mod clients;
mod clock;
mod ending;
mod events;
mod follower;
mod guest;
mod helper;
mod launch;
mod memory;
mod mirror;
mod network;
mod processes;
mod requests;
mod resizing;
mod signals;
mod sockets;
mod stand_in;
mod tenants;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use agent::{Failure, FailureKind, ProcessId};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::control::Connection;
use crate::fs::SharesHandle;
use crate::machine::exit::ExitReceiver;
use crate::machine::vcpus::VcpuSource;
use crate::mem::Resizer;
use crate::net::Slots;
use crate::vsock::{Bridge, Ports};

use clients::{Caller, Clients, FIRST_TOKEN};
use clock::Clock;
use ending::Ending;
use follower::Follower;
use guest::Guest;
use memory::OutOfMemory;
use mirror::Mirror;
use processes::Processes;
use resizing::Resizing;
use tenants::Tenants;

pub use clients::listen;
pub use guest::GuestError;
pub use launch::{LaunchError, run};
pub use signals::Signals;

/// Exit status of a VMM whose guest did not come to a proper end.
pub const GUEST_DIED: u8 = 255;

const LISTENER: u32 = 0;
const AGENT: u32 = 1;
const TIMER: u32 = 2;
const SIGNALS: u32 = 3;
const MACHINE: u32 = 4;
const DRAINED: u32 = 5;
const MIRROR: u32 = 6;
const CHANGES: u32 = 7;
const FOLLOWER: u32 = 8;
const MEMORY: u32 = 9;
const HOST_CLOCK: u32 = 10;

/// What a sandbox's controller is made of.
#[derive(Debug)]
pub struct Parts {
    /// The inherited connection, its first request answered.
    pub client: Connection,
    /// The control socket.
    pub listener: UnixListener,
    /// The VMM's signals, blocked in every thread.
    pub signals: Signals,
    /// Hears of the machine's end.
    pub machine: ExitReceiver,
    /// Ports of the machine's vsock device.
    pub ports: Ports,
    /// Shares of its virtio-fs device.
    pub shares: SharesHandle,
    /// Its network devices.
    pub slots: Slots,
    /// Gives it more memory, or less.
    pub resizer: Resizer,
    /// Makes further vCPUs for it.
    pub vcpus: VcpuSource,
    /// Id of the container whose end is the sandbox's.
    pub main_container: String,
    /// The program that is killed on the host for what is killed in the guest, see [`crate::victim`]; none where nobody looks.
    pub victim: Option<OsString>,
    /// The command that follows the interfaces of the network namespace, see
    /// [`crate::config::SandboxConfig::follow_interfaces`].
    pub follow_interfaces: Vec<OsString>,
}

/// What a call to the agent was made for.
#[derive(Debug)]
enum Purpose {
    /// A client's request that makes a process: of a container, or executed in one.
    Make(Caller, ProcessId),
    Start(Caller, ProcessId),
    /// Stops the container of this first process, or lets it go on.
    Freeze(Caller, ProcessId, bool),
    Delete(Caller, String),
    /// The time of the guest is wanted.
    ReadClock(clock::Question),
    /// Any other request of a client.
    Other(Caller),
    /// Something the VMM wants for itself.
    Own,
}

/// The controller.
#[derive(Debug)]
pub struct Sandbox {
    guest: Guest<Purpose>,
    guest_interest: EventSet,
    clients: Clients,
    processes: Processes,
    out_of_memory: OutOfMemory,
    mirror: Mirror,
    follower: Follower,
    tenants: Tenants,
    listener: UnixListener,
    signals: Signals,
    machine: ExitReceiver,
    ports: Ports,
    shares: SharesHandle,
    slots: Slots,
    resizing: Resizing,
    clock: Clock,
    vcpus: VcpuSource,
    timer: TimerFd,
    armed: Option<Instant>,
    main: ProcessId,
    /// Whether the main container has been created: from then on the sandbox does without its first client.
    created: bool,
    ending: Ending,
    /// Why nothing new can begin any more.
    lost: Option<Failure>,
    outcome: Sender<u8>,
}

impl Sandbox {
    /// A controller of a machine that runs, and where its exit status will come from.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn new(parts: Parts) -> io::Result<(Self, Receiver<u8>)> {
        let (ours, theirs) = UnixStream::pair()?;
        let bridge = Bridge::new(Some(theirs.try_clone()?.into()), Some(theirs.into()));
        parts.ports.listen_on(agent::CONTROL_PORT, bridge);
        let (outcome, receiver) = channel();
        let mut sandbox = Self {
            guest: Guest::new(ours),
            guest_interest: EventSet::IN,
            clients: Clients::new(parts.client, &parts.listener),
            processes: Processes::default(),
            out_of_memory: OutOfMemory::default(),
            mirror: Mirror::new(parts.victim),
            follower: Follower::new(parts.follow_interfaces),
            tenants: Tenants::default(),
            listener: parts.listener,
            signals: parts.signals,
            machine: parts.machine,
            ports: parts.ports,
            shares: parts.shares,
            slots: parts.slots,
            resizing: Resizing::new(parts.resizer),
            clock: Clock::new()?,
            vcpus: parts.vcpus,
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?,
            armed: None,
            main: ProcessId { container: parts.main_container, exec: None },
            created: false,
            ending: Ending::default(),
            lost: None,
            outcome,
        };
        sandbox.use_vcpus();
        Ok((sandbox, receiver))
    }

    fn watched(&self) -> [(u32, RawFd); 8] {
        [
            (LISTENER, self.listener.as_raw_fd()),
            (AGENT, self.guest.as_fd().as_raw_fd()),
            (TIMER, self.timer.as_fd().as_raw_fd()),
            (SIGNALS, self.signals.as_fd().as_raw_fd()),
            (MACHINE, self.machine.as_raw_fd()),
            (DRAINED, self.ports.drained().as_raw_fd()),
            (MEMORY, self.resizing.as_raw_fd()),
            (HOST_CLOCK, self.clock.as_raw_fd()),
        ]
    }

    /// What follows from whatever has just happened.
    fn settle(&mut self, ops: &mut EventOps) {
        self.settle_clock(Instant::now());
        if let Err(error) = self.guest.flush() {
            self.lose_guest(&error);
        }
        self.settle_resizing(Instant::now());
        self.tell_ends();
        for client in self.clients.settle(ops) {
            self.processes.forget_client(client);
            self.out_of_memory.forget_client(client);
            self.move_out(client);
            if client == FIRST_TOKEN && !self.created {
                let cause = "the client that started it has gone away";
                self.die_of(&failure(FailureKind::GuestDied, "supervise the sandbox", cause));
            }
        }
        self.settle_tenants();
        self.watch_guest(ops);
        self.watch_victim(ops);
        self.settle_follower(ops);
        self.advance_end(Instant::now());
        self.arm_timer();
    }

    fn watch_guest(&mut self, ops: &mut EventOps) {
        let wanted = match (self.lost.is_some(), self.guest.has_unsent()) {
            // Nothing it says matters any more, and a closed connection would be readable for ever.
            (true, _) => EventSet::empty(),
            (false, true) => EventSet::IN | EventSet::OUT,
            (false, false) => EventSet::IN,
        };
        if wanted != self.guest_interest {
            let fd = self.guest.as_fd().as_raw_fd();
            let events = Events::with_data_raw(fd, AGENT, wanted);
            let result = if wanted.is_empty() { ops.remove(events) } else { ops.modify(events) };
            self.guest_interest = wanted;
            if let Err(error) = result {
                tracing::error!(%error, "cannot watch the agent's connection");
            }
        }
    }

    fn arm_timer(&mut self) {
        let deadlines = [
            self.guest_deadline(),
            self.ending.deadline(),
            self.follower_deadline(),
            self.resizing.deadline(),
            self.clock.deadline(),
        ];
        let deadline = deadlines.into_iter().flatten().min();
        if deadline == self.armed {
            return;
        }
        let result = match deadline {
            None => self.timer.unset(),
            Some(deadline) => {
                // A timer of zero would be none.
                let left = deadline.saturating_duration_since(Instant::now()).max(std::time::Duration::from_micros(1));
                self.timer.set(Expiration::OneShot(TimeSpec::from(left)), TimerSetTimeFlags::empty())
            }
        };
        match result {
            Ok(()) => self.armed = deadline,
            Err(error) => tracing::error!(%error, "cannot set the timer of the deadlines"),
        }
    }

    fn guest_deadline(&self) -> Option<Instant> {
        if self.lost.is_some() { None } else { self.guest.deadline() }
    }

    fn follower_deadline(&self) -> Option<Instant> {
        if self.lost.is_some() { None } else { self.follower.deadline() }
    }
}

impl MutEventSubscriber for Sandbox {
    fn init(&mut self, ops: &mut EventOps) {
        for (token, fd) in self.watched() {
            // A machine ends once; its descriptor stays readable.
            let once = if token == MACHINE { EventSet::ONE_SHOT } else { EventSet::empty() };
            if let Err(error) = ops.add(Events::with_data_raw(fd, token, EventSet::IN | once)) {
                self.die("watch the sandbox's descriptors", &error);
            }
        }
        // What the first client sent right behind its configuration may have been read with it.
        self.serve(FIRST_TOKEN, EventSet::empty());
        self.settle(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            LISTENER => self.accept(),
            AGENT => self.hear_guest(),
            TIMER => self.expire(),
            SIGNALS => self.forward_signals(),
            MACHINE => self.hear_machine(),
            DRAINED => drop(self.ports.drained().read()),
            MIRROR => self.bury_victim(ops),
            CHANGES => self.hear_changes(),
            FOLLOWER => self.end_follower(ops),
            MEMORY => self.hear_memory(),
            HOST_CLOCK => self.hear_host_clock(),
            client => self.serve(client, events.event_set()),
        }
        self.settle(ops);
    }
}

fn failure(kind: FailureKind, step: impl Into<String>, cause: impl std::fmt::Display) -> Failure {
    Failure { kind, step: step.into(), cause: cause.to_string() }
}

/// The name of a container's first process.
fn init_of(container: &str) -> ProcessId {
    ProcessId { container: container.to_owned(), exec: None }
}
