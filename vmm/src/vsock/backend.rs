//! All connections of the device: which connection a packet belongs to, and which connection sends next.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::connection::{Connection, ProtocolViolation};
use super::header::{OP_CREDIT_REQUEST, OP_CREDIT_UPDATE, OP_REQUEST, OP_RST, OP_RW, OP_SHUTDOWN, TYPE_STREAM};
use super::host_fd::Watcher;
use super::packet::GuestPacket;
use super::{GUEST_CID, HOST_CID, Packet, Ports};

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

impl Backend {
    pub(super) fn new(ports: Ports) -> io::Result<Self> {
        Ok(Self {
            ports,
            watcher: Arc::new(Watcher::new()?),
            connections: HashMap::new(),
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
                if let Err(ProtocolViolation(what)) = Self::handle_packet(connection, packet) {
                    tracing::debug!(port = packet.dst_port(), what, "guest broke the vsock protocol: connection reset");
                    connection.close();
                    self.reset(packet);
                } else if connection.is_shut_down() {
                    connection.close();
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

    /// The number of connections, pending resets and connections in the send queue.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        (self.connections.len(), self.resets.len(), self.send_queue.len())
    }

    fn handle_packet(connection: &mut Connection, packet: &GuestPacket) -> Result<(), ProtocolViolation> {
        connection.update_credit(packet);
        match packet.op() {
            OP_RW => connection.receive(packet)?,
            OP_SHUTDOWN => connection.shutdown(packet.flags()),
            OP_CREDIT_UPDATE => {}
            OP_CREDIT_REQUEST => connection.credit_request(),
            OP_RST => connection.close(),
            _ => return Err(ProtocolViolation("operation that no open connection has")),
        }
        Ok(())
    }

    fn request(&mut self, packet: &GuestPacket) {
        let (port, key) = (packet.dst_port(), key(packet.dst_port(), packet.src_port()));
        if self.connections.contains_key(&key) {
            // The key is in use by a closed connection whose backlog has not been written yet.
            return self.reset(packet);
        }
        let accepted = self.ports.take(port).map(|listener| Connection::accept(packet, listener, key, &self.watcher));
        match accepted {
            Some(Ok(connection)) => {
                self.connections.insert(key, connection);
                self.update_schedule(key);
            }
            Some(Err(error)) => {
                tracing::warn!(port, %error, "cannot serve a stream's descriptor");
                self.reset(packet);
            }
            None => self.reset(packet),
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
            self.connections.remove(&key);
        } else if !connection.queued && connection.has_output() {
            connection.queued = true;
            self.send_queue.push_back(key);
        }
    }
}
