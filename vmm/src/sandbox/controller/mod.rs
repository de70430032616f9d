//! The controller connects the control socket, the agent in the guest and the machine.
//!
//! It is one subscriber of the event loop. It never blocks, and all its queues are bounded, so that neither a client nor the
//! guest can delay the others.

mod agent_messages;
mod attachments;
mod clock;
mod container_requests;
mod ending;
mod further_containers;
mod helper;
mod interfaces;
mod oom_kills;
mod relayed_requests;
mod requests;
mod resize;
mod signals;
mod watches;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use agent::{ContainerRequest, Failure, ProcessId, Seed};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};

use super::agent_connection::AgentConnection;
use super::clients::{Caller, Clients, FIRST_CLIENT_TOKEN};
use super::clock::{Clock, ClockReading};
use super::containers::{FurtherContainers, OomKills, ProcessTable, first_process};
use super::helper_tasks::HelperTasks;
use super::host_sockets::Connector;
use super::interface_monitor::InterfaceMonitor;
use super::memory_resize::MemoryResize;
use super::signals::Signals;
use super::template_saver::TemplateSaver;
use crate::control::Connection;
use crate::fs::SharesHandle;
use crate::machine::exit::ExitReceiver;
use crate::machine::vcpu::VcpuSource;
use crate::mem::Resizer;
use crate::net::Slots;
use crate::vsock::{Bridge, Ports};
use ending::Ending;
use watches::token;

/// The parts that a [`Controller`] is built from. It takes ownership of all of them.
#[derive(Debug)]
pub struct Parts {
    /// The inherited connection, whose first request was answered.
    pub client: Connection,
    /// The control socket.
    pub listener: UnixListener,
    /// The VMM's signals, blocked in every thread.
    pub signals: Signals,
    /// Receives the reason for which the machine ended.
    pub machine: ExitReceiver,
    /// Ports of the machine's vsock device.
    pub ports: Ports,
    /// Shares of the machine's virtio-fs device.
    pub shares: SharesHandle,
    /// The machine's network devices.
    pub slots: Slots,
    /// Plugs and unplugs the machine's memory.
    pub resizer: Resizer,
    /// Creates further vCPUs.
    pub vcpus: VcpuSource,
    /// Id of the container whose end ends the sandbox.
    pub main_container: String,
    /// Whether the VMM has a cgroup of its own, in which the host counts OOM kills.
    pub has_cgroup: bool,
    /// The connection to the helper.
    pub helper: OwnedFd,
    /// Connects to sockets of the host.
    pub connector: Connector,
    /// What the sandbox has to do with a template.
    pub template: TemplateRole,
    /// The netlink socket of the interface monitor, see [`super::open_changes`]. `None` if interfaces are not monitored.
    pub interface_changes: Option<OwnedFd>,
}

/// What a sandbox has to do with a template.
#[derive(Debug)]
pub enum TemplateRole {
    /// Nothing: the guest boots.
    None,
    /// The machine goes on where that of a template stopped.
    Started {
        /// The memory that it is to have in MiB. It may have less.
        memory_mib: u64,
        /// New random bytes for the guest's generator of random numbers.
        seed: Seed,
    },
    /// The machine is saved when the agent is ready.
    Make(TemplateSaver),
}

/// The purpose of a request to the agent, which decides what happens with the reply.
#[derive(Debug)]
enum Purpose {
    /// Creates a container's first process, or executes a further process.
    CreateProcess(Caller, ProcessId),
    /// Starts the program of a container's first process.
    Start(Caller, ProcessId),
    /// Freezes (`true`) or thaws the container of this first process.
    Freeze(Caller, ProcessId, bool),
    /// Deletes a container.
    Delete(Caller, String),
    /// Any other request of a client.
    Other(Caller),
    /// Reads the guest's clock.
    ReadClock(ClockReading),
    /// Prepares the agent for the end of its machine, which becomes a template.
    PrepareTemplate,
    /// A request of the VMM itself, whose reply is not needed.
    Internal,
}

/// The controller of a running machine.
#[derive(Debug)]
pub struct Controller {
    agent: AgentConnection<Purpose>,
    /// The events of the agent's connection that the event loop watches for.
    agent_watched: EventSet,
    clients: Clients,
    processes: ProcessTable,
    oom_kills: OomKills,
    helper: HelperTasks,
    connector: Connector,
    has_cgroup: bool,
    interface_monitor: InterfaceMonitor,
    further_containers: FurtherContainers,
    listener: UnixListener,
    signals: Signals,
    machine: ExitReceiver,
    ports: Ports,
    shares: SharesHandle,
    slots: Slots,
    memory_resize: MemoryResize,
    /// Requests to start containers that wait until the machine has all of its memory.
    delayed_starts: Vec<(Caller, ContainerRequest)>,
    clock: Clock,
    vcpus: VcpuSource,
    template_saver: Option<TemplateSaver>,
    /// Whether the guest has started from a template.
    is_restored: bool,
    /// Expires at the earliest deadline.
    timer: TimerFd,
    /// The deadline that the timer is set to.
    armed: Option<Instant>,
    /// The main container's first process.
    main: ProcessId,
    /// Whether the main container was created. The sandbox then no longer needs the inherited client.
    is_created: bool,
    /// Whether the start of the main container was requested.
    is_started: bool,
    ending: Ending,
    /// Why the guest is no longer usable. New requests to the agent fail with it.
    closed: Option<Failure>,
    exit_status: Sender<u8>,
}

impl Controller {
    /// A controller of a running machine, and the channel that receives the VMM's exit status.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn new(parts: Parts) -> io::Result<(Self, Receiver<u8>)> {
        let (agent, bridged) = UnixStream::pair()?;
        let bridge = Bridge::new(Some(bridged.try_clone()?.into()), Some(bridged.into()));
        parts.ports.listen_on(agent::CONTROL_PORT, bridge);
        let (exit_status, receiver) = channel();
        let mut controller = Self {
            agent: AgentConnection::new(agent),
            agent_watched: EventSet::IN,
            clients: Clients::new(parts.client, &parts.listener),
            processes: ProcessTable::default(),
            oom_kills: OomKills::default(),
            helper: HelperTasks::new(parts.helper),
            connector: parts.connector,
            has_cgroup: parts.has_cgroup,
            interface_monitor: InterfaceMonitor::new(parts.interface_changes),
            further_containers: FurtherContainers::default(),
            listener: parts.listener,
            signals: parts.signals,
            machine: parts.machine,
            ports: parts.ports,
            shares: parts.shares,
            slots: parts.slots,
            memory_resize: MemoryResize::new(parts.resizer),
            delayed_starts: Vec::new(),
            clock: Clock::new()?,
            vcpus: parts.vcpus,
            template_saver: None,
            is_restored: false,
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?,
            armed: None,
            main: first_process(&parts.main_container),
            is_created: false,
            is_started: false,
            ending: Ending::default(),
            closed: None,
            exit_status,
        };
        controller.prepare_guest(parts.template);
        Ok((controller, receiver))
    }

    /// Queues the first requests to the agent. A machine that becomes a template gets none that would be in the template.
    fn prepare_guest(&mut self, template: TemplateRole) {
        match template {
            TemplateRole::None => {}
            TemplateRole::Started { memory_mib, seed } => {
                let request = agent::Request::SeedRandom { seed };
                self.call_agent(request, "seed the guest's random numbers".to_owned(), Purpose::Internal);
                self.is_restored = true;
                self.add_memory(memory_mib);
            }
            TemplateRole::Make(saver) => {
                self.template_saver = Some(saver);
                let step = "prepare the guest to become a template".to_owned();
                return self.call_agent(agent::Request::PrepareTemplate, step, Purpose::PrepareTemplate);
            }
        }
        self.send_stream_secret();
        self.request_boot_vcpus();
    }

    /// Queues the secret of the agent's streams. The agent gets it before all other requests, because it has no stream
    /// without it.
    fn send_stream_secret(&mut self) {
        let request = agent::Request::SetStreamSecret { secret: self.ports.secret() };
        self.call_agent(request, "send the secret of the streams".to_owned(), Purpose::Internal);
    }

    /// The steps that follow every event.
    fn finish_event(&mut self, ops: &mut EventOps) {
        self.compare_clocks_if_due(Instant::now());
        if let Err(error) = self.agent.flush() {
            self.on_agent_error(&error);
        }
        self.answer_finished_resize(Instant::now());
        self.report_exits();
        for client in self.clients.update_watches(ops) {
            self.on_client_closed(client);
        }
        self.remove_ended_containers();
        self.update_agent_watch(ops);
        self.run_interface_monitor(ops);
        self.advance_ending(Instant::now());
        self.arm_timer();
    }

    fn on_client_closed(&mut self, client: u32) {
        self.processes.remove_client(client);
        self.oom_kills.remove_client(client);
        self.end_containers_of(client);
        if client == FIRST_CLIENT_TOKEN && !self.is_created {
            self.on_creator_lost();
        }
    }
}

impl MutEventSubscriber for Controller {
    fn init(&mut self, ops: &mut EventOps) {
        self.add_watches(ops);
        // The inherited client's next requests may have been received with its configuration.
        self.serve_client(FIRST_CLIENT_TOKEN, EventSet::empty());
        self.finish_event(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            token::LISTENER => self.accept_clients(),
            token::AGENT => self.read_agent(),
            token::TIMER => self.on_timer(),
            token::SIGNALS => self.forward_signals(),
            token::MACHINE => self.check_machine_exit(),
            token::DRAINED => drop(self.ports.drained().read()),
            token::HELPER => self.read_helper(ops),
            token::INTERFACE_CHANGES => self.interface_monitor.on_change(),
            token::MEMORY => self.memory_resize.clear_event(),
            token::HOST_CLOCK => self.on_host_clock_set(),
            client => self.serve_client(client, events.event_set()),
        }
        self.finish_event(ops);
    }
}
