//! The host's ports: what the guest may connect to, and what becomes of it.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The first port that is given out; those below are for fixed services.
const FIRST_PORT: u32 = agent::CONTROL_PORT + 1;

/// The descriptors a connection is bridged to. They may be shared with other processes: their file status flags are
/// never changed.
#[derive(Debug)]
pub struct Bridge {
    /// Read from, for the guest; its end of file becomes a half-close.
    pub source: Option<OwnedFd>,
    /// Gets what the guest sends; without one, that is dropped.
    pub sink: Option<OwnedFd>,
}

/// How much of a stream the guest sent and the sink has not taken yet.
#[derive(Debug)]
pub struct Flow {
    unwritten: AtomicUsize,
    watched: AtomicBool,
    drained: Arc<EventFd>,
}

impl Flow {
    /// Whether everything the guest sent so far was handed over, or dropped because its reader is gone. If not,
    /// [`Ports::drained`] becomes readable when it was.
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
            // A counter that is full is readable already.
            let _ = self.drained.write(1);
        }
    }
}

/// A port that was listened on and not connected to yet.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) bridge: Bridge,
    pub(crate) flow: Arc<Flow>,
}

#[derive(Debug)]
struct Table {
    listeners: HashMap<u32, Listener>,
    next_port: u32,
}

/// Opens and closes host ports. A handle: all clones are the same table, which the controller fills and the device
/// empties.
#[derive(Clone, Debug)]
pub struct Ports {
    table: Arc<Mutex<Table>>,
    drained: Arc<EventFd>,
}

impl Ports {
    /// No port is open.
    ///
    /// # Errors
    /// No event descriptor can be made.
    pub fn new() -> io::Result<Self> {
        let table = Table { listeners: HashMap::new(), next_port: FIRST_PORT };
        Ok(Self { table: Arc::new(Mutex::new(table)), drained: Arc::new(EventFd::new(EFD_NONBLOCK)?) })
    }

    /// Listens on a fresh port for one connection.
    #[must_use]
    pub fn listen(&self, bridge: Bridge) -> (u32, Arc<Flow>) {
        let mut table = self.lock();
        let port = table.next_port;
        table.next_port += 1;
        (port, self.insert(&mut table, port, bridge))
    }

    /// Listens on a fixed port for one connection.
    pub fn listen_on(&self, port: u32, bridge: Bridge) -> Arc<Flow> {
        self.insert(&mut self.lock(), port, bridge)
    }

    /// Stops listening and closes the descriptors, unless the guest has connected already.
    pub fn close(&self, port: u32) {
        self.lock().listeners.remove(&port);
    }

    /// Readable when a stream was drained that [`Flow::is_drained`] said was not.
    #[must_use]
    pub fn drained(&self) -> &EventFd {
        &self.drained
    }

    pub(crate) fn take(&self, port: u32) -> Option<Listener> {
        self.lock().listeners.remove(&port)
    }

    fn insert(&self, table: &mut Table, port: u32, bridge: Bridge) -> Arc<Flow> {
        let flow = Arc::new(Flow {
            unwritten: AtomicUsize::new(0),
            watched: AtomicBool::new(false),
            drained: Arc::clone(&self.drained),
        });
        table.listeners.insert(port, Listener { bridge, flow: Arc::clone(&flow) });
        flow
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        // No code panics while it holds the lock, and the table is whole at every step.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
