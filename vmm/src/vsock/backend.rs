//! All connections of the device: which connection a packet belongs to, and which connection sends next.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::connection::{Connection, Refusal};
use super::header::{OP_CREDIT_REQUEST, OP_CREDIT_UPDATE, OP_REQUEST, OP_RST, OP_RW, OP_SHUTDOWN, TYPE_STREAM};
use super::host_fd::Watcher;
use super::packet::GuestPacket;
use super::{GUEST_CID, HOST_CID, MAX_PENDING, Packet, Ports};

/// The most resets that wait for a receive buffer. At this number, the device stops taking packets from the transmit
/// queue. This bounds the memory that a guest can use by sending invalid packets and adding no receive buffers.
const MAX_RESETS: usize = 256;

/// The answer to a packet that belongs to no connection.
#[derive(Clone, Copy, Debug)]
struct Reset {
    host_port: u32,
    guest_port: u32,
}

#[derive(Debug)]
pub(super) struct Backend {
    ports: Ports,
    watcher: Arc<Watcher>,
    /// By [`key`].
    connections: HashMap<u64, Connection>,
    /// Keys of the pending connections, the oldest first.
    pending: VecDeque<u64>,
    resets: VecDeque<Reset>,
    /// Keys of the connections that have a packet to send, in the order of their turns.
    send_queue: VecDeque<u64>,
}

/// The key of a connection: its two ports. Host ports come from a small counter, so the highest bit is free for the
/// [`Watcher`]'s tokens.
fn key(host_port: u32, guest_port: u32) -> u64 {
    u64::from(host_port) << 32 | u64::from(guest_port)
}

fn host_port(key: u64) -> u32 {
    u32::try_from(key >> 32).unwrap_or_default()
}

fn guest_port(key: u64) -> u32 {
    u32::try_from(key & u64::from(u32::MAX)).unwrap_or_default()
}

impl Backend {
    pub(super) fn new(ports: Ports) -> io::Result<Self> {
        Ok(Self {
            ports,
            watcher: Arc::new(Watcher::new()?),
            connections: HashMap::new(),
            pending: VecDeque::new(),
            resets: VecDeque::new(),
            send_queue: VecDeque::new(),
        })
    }

    /// Readable when [`Backend::dispatch`] has something to do.
    pub(super) fn events(&self) -> BorrowedFd<'_> {
        self.watcher.as_fd()
    }

    /// Handles the host descriptors that became ready, and writes the backlogs of ready sinks.
    pub(super) fn dispatch(&mut self) -> io::Result<()> {
        let watcher = Arc::clone(&self.watcher);
        watcher.dispatch(|token, events| {
            let key = token >> 1;
            let Some(connection) = self.connections.get_mut(&key) else { return };
            if token & 1 == 0 {
                connection.source_ready();
            } else {
                connection.sink_ready(events);
            }
            self.update_schedule(key);
        })
    }

    /// Whether the device may take packets from the transmit queue.
    pub(super) fn accepts_packets(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Whether [`Backend::fill`] may have a packet for a receive buffer.
    pub(super) fn has_output(&self) -> bool {
        !self.resets.is_empty() || !self.send_queue.is_empty()
    }

    /// Handles a packet from the guest.
    pub(super) fn receive(&mut self, packet: &GuestPacket) {
        let is_for_host = packet.src_cid() == GUEST_CID && packet.dst_cid() == HOST_CID && packet.kind() == TYPE_STREAM;
        let key = key(packet.dst_port(), packet.src_port());
        match self.connections.get_mut(&key).filter(|connection| is_for_host && connection.is_open()) {
            Some(connection) => {
                let was_pending = connection.is_pending();
                let result = handle_packet(connection, packet, key, (&self.ports, &self.watcher));
                if let Err(Refusal(cause)) = result {
                    tracing::debug!(port = packet.dst_port(), cause, "a connection of the guest was reset");
                }
                if result.is_err() || connection.is_shut_down() {
                    connection.close();
                }
                let (is_pending, is_open) = (connection.is_pending(), connection.is_open());
                if was_pending && !(is_pending && is_open) {
                    self.pending.retain(|pending| *pending != key);
                }
                if !is_open {
                    self.reset(packet);
                }
                self.update_schedule(key);
            }
            None if is_for_host && packet.op() == OP_REQUEST => self.request(packet),
            None => self.reset(packet),
        }
    }

    /// Fills `packet` with the next packet to the guest. Returns false if there is none.
    pub(super) fn fill(&mut self, packet: &mut Packet) -> bool {
        packet.set_src_cid(HOST_CID).set_dst_cid(GUEST_CID).set_type(TYPE_STREAM);
        if let Some(Reset { host_port, guest_port }) = self.resets.pop_front() {
            packet.set_src_port(host_port).set_dst_port(guest_port).set_op(OP_RST);
            packet.set_len(0).set_flags(0).set_buf_alloc(0).set_fwd_cnt(0);
            return true;
        }
        // Each connection gets one turn: one with data stays in the queue if the receive buffer has no space for data.
        for _ in 0..self.send_queue.len() {
            let Some(key) = self.send_queue.pop_front() else { break };
            let Some(connection) = self.connections.get_mut(&key) else { continue };
            connection.queued = false;
            let filled = connection.fill(packet.set_src_port(host_port(key)));
            self.update_schedule(key);
            if filled {
                return true;
            }
        }
        false
    }

    /// The number of connections, resets that wait and connections in the send queue.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        (self.connections.len(), self.resets.len(), self.send_queue.len())
    }

    /// Handles the request of a new connection. It is pending, except for the control connection: that port takes one
    /// connection in its life, which the agent makes before it makes the first container, and whose first message has
    /// to be the agent's `Hello`.
    fn request(&mut self, packet: &GuestPacket) {
        let (port, key) = (packet.dst_port(), key(packet.dst_port(), packet.src_port()));
        if self.connections.contains_key(&key) || !self.ports.is_open(port) {
            // A connection with this key is closed, and its backlog has not been written yet.
            return self.reset(packet);
        }
        let mut connection = Connection::accept(packet);
        if port == agent::CONTROL_PORT {
            if bridge(&mut connection, key, (&self.ports, &self.watcher)).is_err() {
                return self.reset(packet);
            }
        } else {
            self.drop_oldest_pending();
            self.pending.push_back(key);
        }
        self.connections.insert(key, connection);
        self.update_schedule(key);
    }

    /// Resets the oldest pending connection if there are as many as there may be.
    fn drop_oldest_pending(&mut self) {
        if self.pending.len() < MAX_PENDING {
            return;
        }
        if let Some(key) = self.pending.pop_front() {
            self.remove(key);
            self.resets.push_back(Reset { host_port: host_port(key), guest_port: guest_port(key) });
        }
    }

    fn reset(&mut self, packet: &GuestPacket) {
        // A reset is never answered, since the answers would not end.
        if packet.op() != OP_RST {
            self.resets.push_back(Reset { host_port: packet.dst_port(), guest_port: packet.src_port() });
        }
    }

    /// Removes a finished connection, or adds one with a packet to send to the send queue.
    fn update_schedule(&mut self, key: u64) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if connection.is_finished() {
            self.remove(key);
        } else if !connection.queued && connection.has_output() {
            connection.queued = true;
            self.send_queue.push_back(key);
        }
    }

    /// Removes a connection, also from the send queue: a guest that adds no receive buffers would fill that with
    /// connections that it resets.
    fn remove(&mut self, key: u64) {
        if self.connections.remove(&key).is_some_and(|connection| connection.queued) {
            self.send_queue.retain(|queued| *queued != key);
        }
    }
}

/// Handles a packet of an open connection.
fn handle_packet(
    connection: &mut Connection,
    packet: &GuestPacket,
    key: u64,
    host: (&Ports, &Arc<Watcher>),
) -> Result<(), Refusal> {
    connection.update_credit(packet);
    match packet.op() {
        OP_RW => receive(connection, packet, key, host)?,
        OP_SHUTDOWN => connection.shutdown(packet.flags()),
        OP_CREDIT_UPDATE => {}
        OP_CREDIT_REQUEST => connection.credit_request(),
        OP_RST => connection.close(),
        _ => return Err(Refusal("operation that no open connection has")),
    }
    Ok(())
}

/// Handles data. When the secret is complete, the connection is bridged and the rest of the data goes to its sink.
fn receive(
    connection: &mut Connection,
    packet: &GuestPacket,
    key: u64,
    host: (&Ports, &Arc<Watcher>),
) -> Result<(), Refusal> {
    connection.count_received(packet)?;
    let mut skipped = 0;
    if connection.is_pending() {
        match connection.receive_secret(packet, &host.0.secret())? {
            Some(taken) => skipped = taken,
            None => return Ok(()),
        }
        bridge(connection, key, host)?;
    }
    connection.forward(packet, skipped);
    Ok(())
}

/// Takes the listener of the connection's port, or connects to its service, and bridges the connection to it.
fn bridge(connection: &mut Connection, key: u64, (ports, watcher): (&Ports, &Arc<Watcher>)) -> Result<(), Refusal> {
    let port = host_port(key);
    let listener = ports.take(port).ok_or(Refusal("nothing listens on its port any longer"))?;
    connection.bridge(listener, key, watcher).map_err(|error| {
        tracing::warn!(port, %error, "cannot serve a stream's descriptor");
        Refusal("its descriptor cannot be served")
    })
}
