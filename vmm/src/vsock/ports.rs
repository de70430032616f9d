//! The host's ports that the guest may connect to, and the descriptors that its connections are bridged to.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use agent::StreamSecret;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::virtio::rng::random;

/// The first port that is assigned dynamically. Lower ports are for fixed services.
const FIRST_PORT: u32 = agent::CONTROL_PORT + 1;

/// The most simultaneous connections to a service's port.
const MAX_CONNECTIONS: usize = 128;

/// The host descriptors of a connection. They may be shared with other processes, so their file status flags are never
/// changed.
#[derive(Debug)]
pub struct Bridge {
    /// The device sends what it reads from here to the guest. The end of file becomes a half-close.
    pub source: Option<OwnedFd>,
    /// The device writes what the guest sends to here. Without a sink it drops the data.
    pub sink: Option<OwnedFd>,
    /// The sink is a socket that nobody else uses. When the guest ends its stream, the device shuts down the socket's
    /// write direction.
    pub exclusive_socket: bool,
}

impl Bridge {
    /// A bridge to descriptors that other processes may share.
    #[must_use]
    pub fn new(source: Option<OwnedFd>, sink: Option<OwnedFd>) -> Self {
        Self { source, sink, exclusive_socket: false }
    }

    /// A bridge to a socket that only this connection uses.
    fn to_socket(socket: OwnedFd) -> io::Result<Self> {
        let sink = socket.try_clone()?;
        Ok(Self { source: Some(socket), sink: Some(sink), exclusive_socket: true })
    }
}

/// Creates the host's end of a connection to a service. The event loop calls it, so it must not block.
pub type Connect = Box<dyn Fn() -> io::Result<OwnedFd> + Send>;

/// A port that takes any number of connections in its life, and a bounded number at a time.
struct Service {
    connect: Connect,
    /// The flows of its connections. A flow lives as long as its connection.
    flows: Vec<Weak<Flow>>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("flows", &self.flows.len()).finish_non_exhaustive()
    }
}

/// The number of bytes that the guest sent in a stream and that the sink has not taken yet.
#[derive(Debug)]
pub struct Flow {
    unwritten: AtomicUsize,
    watched: AtomicBool,
    drained: Arc<EventFd>,
}

impl Flow {
    /// Whether all data that the guest has sent so far was written, or dropped because its reader closed the sink. If
    /// the result is false, [`Ports::drained`] becomes readable once it would be true.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.watched.store(true, Ordering::SeqCst);
        let drained = self.unwritten.load(Ordering::SeqCst) == 0;
        if drained {
            self.watched.store(false, Ordering::SeqCst);
        }
        drained
    }

    pub(crate) fn set_unwritten(&self, bytes: usize) {
        self.unwritten.store(bytes, Ordering::SeqCst);
        if bytes == 0 && self.watched.swap(false, Ordering::SeqCst) {
            // The write fails only if the counter is full, and then it is readable.
            let _ = self.drained.write(1);
        }
    }
}

/// A port with a listener and without a connection.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) bridge: Bridge,
    pub(crate) flow: Arc<Flow>,
}

#[derive(Debug)]
struct Table {
    listeners: HashMap<u32, Listener>,
    services: HashMap<u32, Service>,
    next_port: u32,
}

impl Table {
    fn take_port(&mut self) -> u32 {
        self.next_port += 1;
        self.next_port - 1
    }
}

/// A handle to the table of host ports. All clones refer to the same table. The sandbox adds ports, and the device
/// takes them when the guest's agent connects.
#[derive(Clone, Debug)]
pub struct Ports {
    secret: StreamSecret,
    table: Arc<Mutex<Table>>,
    drained: Arc<EventFd>,
}

impl Ports {
    /// An empty table with a new secret.
    ///
    /// # Errors
    /// The eventfd cannot be created, or the kernel provides no random bytes.
    pub fn new() -> io::Result<Self> {
        let mut secret = [0; StreamSecret::LENGTH];
        random(&mut secret)?;
        let table = Table { listeners: HashMap::new(), services: HashMap::new(), next_port: FIRST_PORT };
        Ok(Self {
            secret: StreamSecret::new(secret),
            table: Arc::new(Mutex::new(table)),
            drained: Arc::new(EventFd::new(EFD_NONBLOCK)?),
        })
    }

    /// The secret that connections to all ports but [`agent::CONTROL_PORT`] begin with.
    #[must_use]
    pub fn secret(&self) -> StreamSecret {
        self.secret
    }

    /// Listens on a new port for one connection. Returns the port.
    #[must_use]
    pub fn listen(&self, bridge: Bridge) -> (u32, Arc<Flow>) {
        let mut table = self.lock();
        let port = table.take_port();
        (port, self.insert(&mut table, port, bridge))
    }

    /// Listens on a fixed port for one connection.
    pub fn listen_on(&self, port: u32, bridge: Bridge) -> Arc<Flow> {
        self.insert(&mut self.lock(), port, bridge)
    }

    /// Listens on a new port for connections. Each gets its own host descriptor from `connect`. Returns the port.
    #[must_use]
    pub fn serve(&self, connect: Connect) -> u32 {
        let mut table = self.lock();
        let port = table.take_port();
        table.services.insert(port, Service { connect, flows: Vec::new() });
        port
    }

    /// Stops listening and closes the port's descriptors. Established connections keep theirs.
    pub fn close(&self, port: u32) {
        let mut table = self.lock();
        table.listeners.remove(&port);
        table.services.remove(&port);
    }

    /// Readable when a stream is drained for which [`Flow::is_drained`] returned false.
    #[must_use]
    pub fn drained(&self) -> &EventFd {
        &self.drained
    }

    /// Whether something listens on `port`.
    pub(super) fn is_open(&self, port: u32) -> bool {
        let table = self.lock();
        table.listeners.contains_key(&port) || table.services.contains_key(&port)
    }

    /// Takes the listener of `port`, or connects to its service. `None` if nothing listens or the service refuses.
    pub(crate) fn take(&self, port: u32) -> Option<Listener> {
        let mut table = self.lock();
        table.listeners.remove(&port).or_else(|| self.connect(table.services.get_mut(&port)?))
    }

    fn connect(&self, service: &mut Service) -> Option<Listener> {
        service.flows.retain(|flow| flow.strong_count() > 0);
        if service.flows.len() >= MAX_CONNECTIONS {
            tracing::debug!(
                "the guest has {MAX_CONNECTIONS} connections to one socket: a further connection was refused"
            );
            return None;
        }
        match (service.connect)().and_then(Bridge::to_socket) {
            Ok(bridge) => {
                let flow = self.new_flow();
                service.flows.push(Arc::downgrade(&flow));
                Some(Listener { bridge, flow })
            }
            Err(error) => {
                tracing::debug!(%error, "a connection of the guest was refused");
                None
            }
        }
    }

    fn new_flow(&self) -> Arc<Flow> {
        Arc::new(Flow {
            unwritten: AtomicUsize::new(0),
            watched: AtomicBool::new(false),
            drained: Arc::clone(&self.drained),
        })
    }

    fn insert(&self, table: &mut Table, port: u32, bridge: Bridge) -> Arc<Flow> {
        let flow = self.new_flow();
        table.listeners.insert(port, Listener { bridge, flow: Arc::clone(&flow) });
        flow
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        // The code that holds the lock does not panic, and the table is consistent after each step.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
