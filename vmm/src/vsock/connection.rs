//! One connection between the guest and two host descriptors: the stream protocol's state machine.

use std::io;
use std::sync::Arc;

use agent::StreamSecret;
use nix::sys::epoll::EpollFlags;
use vm_memory::VolatileSlice;
use vm_memory::volatile_memory::PtrGuard;

use super::backlog::Backlog;
use super::credit::Credit;
use super::handshake::Handshake;
use super::header::{OP_CREDIT_UPDATE, OP_RESPONSE, OP_RW, OP_SHUTDOWN, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::host_fd::{Direction, Endpoint, Watcher};
use super::packet::GuestPacket;
use super::ports::{Flow, Listener};
use super::{BUFFER_SIZE, MAX_PAYLOAD, Packet};

/// Why the device resets a connection: the guest violated the protocol, or has no right to the connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Refusal(pub(super) &'static str);

/// Packets to be sent to the guest.
#[derive(Debug, Default)]
struct PendingPackets {
    response: bool,
    credit: bool,
    shutdown: bool,
}

#[derive(Debug)]
pub(super) struct Connection {
    guest_port: u32,
    /// `Some` while the connection is pending.
    handshake: Option<Handshake>,
    source: Option<Endpoint>,
    sink: Option<Endpoint>,
    /// Whether the sink is a socket of this connection only.
    exclusive_socket: bool,
    backlog: Backlog,
    /// `None` while the connection is pending.
    flow: Option<Arc<Flow>>,
    output: PendingPackets,
    /// Flags of the host's last `OP_SHUTDOWN`, sent or pending.
    host_shutdown: u32,
    guest_shutdown: u32,
    /// The guest's side is closed. Only the backlog remains to be written.
    closed: bool,
    credit: Credit,
    /// Whether the connection is in the backend's send queue.
    pub(super) queued: bool,
}

impl Connection {
    /// Accepts the guest's request. The connection is pending until [`Connection::bridge`].
    pub(super) fn accept(request: &GuestPacket) -> Self {
        Self {
            guest_port: request.src_port(),
            handshake: Some(Handshake::default()),
            source: None,
            sink: None,
            exclusive_socket: false,
            backlog: Backlog::default(),
            flow: None,
            output: PendingPackets { response: true, ..PendingPackets::default() },
            host_shutdown: 0,
            guest_shutdown: 0,
            closed: false,
            credit: Credit::new(request.buf_alloc(), request.fwd_cnt()),
            queued: false,
        }
    }

    /// Connects a pending connection to the descriptors of `listener`. `key` identifies the connection, see
    /// [`super::backend::Backend`].
    pub(super) fn bridge(&mut self, listener: Listener, key: u64, watcher: &Arc<Watcher>) -> io::Result<()> {
        let Listener { bridge, flow } = listener;
        // A guest that receives no more has said so while the connection was pending.
        let source = bridge.source.filter(|_| self.guest_shutdown & SHUTDOWN_RECEIVE == 0);
        self.source = Endpoint::new(source, Direction::Read, key, watcher)?;
        self.sink = Endpoint::new(bridge.sink, Direction::Write, key, watcher)?;
        self.exclusive_socket = bridge.exclusive_socket;
        self.flow = Some(flow);
        self.handshake = None;
        Ok(())
    }

    /// Whether the connection has no descriptors, because the guest has not shown the secret.
    pub(super) fn is_pending(&self) -> bool {
        self.handshake.is_some()
    }

    /// Whether packets from the guest can still belong to this connection.
    pub(super) fn is_open(&self) -> bool {
        !self.closed
    }

    /// Whether the connection can be removed.
    pub(super) fn is_finished(&self) -> bool {
        self.closed && self.backlog.is_empty()
    }

    /// Updates the guest's credit, which every packet carries.
    pub(super) fn update_credit(&mut self, packet: &GuestPacket) {
        self.credit.update(packet.buf_alloc(), packet.fwd_cnt());
    }

    /// The guest requests a credit update.
    pub(super) fn credit_request(&mut self) {
        self.output.credit = true;
    }

    /// Counts data from the guest, which [`Connection::receive_secret`] and [`Connection::forward`] handle.
    pub(super) fn count_received(&mut self, packet: &GuestPacket) -> Result<(), Refusal> {
        if self.guest_shutdown & SHUTDOWN_SEND != 0 {
            return Err(Refusal("data after the end of data"));
        }
        self.credit.receive(packet.len()).ok_or(Refusal("more data than its credit allows"))
    }

    /// Takes the next bytes of a pending connection as part of the secret. Returns their number once the secret is
    /// complete, and `None` before.
    pub(super) fn receive_secret(
        &mut self,
        packet: &GuestPacket,
        secret: &StreamSecret,
    ) -> Result<Option<usize>, Refusal> {
        let Some(handshake) = &mut self.handshake else { return Ok(Some(0)) };
        let taken = handshake.take(packet.payload());
        self.credit.forward(taken);
        match handshake.complete() {
            None => Ok(None),
            Some(bytes) if secret.matches(bytes) => Ok(Some(taken)),
            Some(_) => Err(Refusal("the first bytes are not the secret")),
        }
    }

    /// Forwards the payload of a packet to the sink, except for its first `skipped` bytes.
    pub(super) fn forward(&mut self, packet: &GuestPacket, skipped: usize) {
        let end = if self.backlog.is_empty() { self.write_payload(packet.payload(), skipped) } else { skipped };
        if self.sink.is_none() {
            // The data is dropped. The guest was told that the host receives no more, or the bridge has no sink.
            self.credit.forward_all();
        } else if end < packet.len() as usize {
            self.push_backlog(packet.payload(), end);
        }
        self.schedule_credit_update();
    }

    /// The guest receives no more, sends no more, or both.
    pub(super) fn shutdown(&mut self, flags: u32) {
        self.guest_shutdown |= flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            self.source = None;
        }
        self.close_drained_sink();
    }

    /// Whether the guest has shut down both directions. It then waits for a reset.
    pub(super) fn is_shut_down(&self) -> bool {
        self.guest_shutdown == SHUTDOWN_RECEIVE | SHUTDOWN_SEND
    }

    /// Closes the guest's side. The backlog is still written.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.source = None;
        self.guest_shutdown = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
        self.close_drained_sink();
    }

    /// The source may be readable.
    pub(super) fn source_ready(&mut self) {
        if let Some(source) = &mut self.source {
            source.ready = true;
        }
    }

    /// The sink may be writable, or its reader has closed it.
    pub(super) fn sink_ready(&mut self, events: EpollFlags) {
        let Some(sink) = &mut self.sink else { return };
        sink.ready = true;
        if events.contains(EpollFlags::EPOLLERR) {
            return self.drop_sink();
        }
        while !self.backlog.is_empty() {
            let bytes = self.backlog.as_slice();
            let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            // SAFETY: the vector describes one live slice, which is only read.
            let Some(count) = (unsafe { self.write(&[part]) }) else { break };
            self.backlog.consume(count);
        }
        self.publish_unwritten();
        self.schedule_credit_update();
        self.close_drained_sink();
    }

    /// Whether [`Connection::fill`] may have a packet.
    pub(super) fn has_output(&self) -> bool {
        let PendingPackets { response, credit, shutdown } = self.output;
        let readable = self.source.as_ref().is_some_and(|source| source.ready) && self.credit.allowance() > 0;
        !self.closed && (response || credit || shutdown || readable)
    }

    /// Fills `packet` with the next packet to the guest: operation, flags, payload and credit. Returns false if there
    /// is none.
    pub(super) fn fill(&mut self, packet: &mut Packet) -> bool {
        if self.closed {
            return false;
        }
        packet.set_flags(0).set_len(0);
        if std::mem::take(&mut self.output.response) {
            packet.set_op(OP_RESPONSE);
        } else if !self.output.shutdown
            && let Some(count) = self.read_to(packet)
        {
            packet.set_op(OP_RW).set_len(count);
        } else if std::mem::take(&mut self.output.shutdown) {
            packet.set_op(OP_SHUTDOWN).set_flags(self.host_shutdown);
        } else if self.output.credit {
            packet.set_op(OP_CREDIT_UPDATE);
        } else {
            return false;
        }
        // Every packet carries the host's credit.
        self.output.credit = false;
        packet.set_dst_port(self.guest_port).set_buf_alloc(BUFFER_SIZE).set_fwd_cnt(self.credit.advertise());
        true
    }

    /// Reads from the source into the packet's buffer in guest memory.
    fn read_to(&mut self, packet: &Packet) -> Option<u32> {
        let credit = self.credit.allowance();
        let source = self.source.as_mut().filter(|source| source.ready)?;
        let data = packet.data_slice()?;
        let len = data.len().min(credit.min(MAX_PAYLOAD) as usize);
        if len == 0 {
            return None;
        }
        // SAFETY: the slice is guest memory of at least `len` bytes, which stays mapped while the guard lives.
        match unsafe { source.fd.read(data.ptr_guard_mut().as_ptr(), len) } {
            Ok(count @ 1..) => {
                let count = u32::try_from(count).ok()?;
                self.credit.send(count);
                return Some(count);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => source.ready = false,
            // A terminal that was hung up fails with EIO. To the guest, the end of file and all errors are the end of
            // input.
            Ok(0) | Err(_) => {
                self.source = None;
                self.queue_shutdown(SHUTDOWN_SEND);
            }
        }
        None
    }

    /// Writes a payload from guest memory to the sink, except for its first `skipped` bytes. Returns the offset of the
    /// first byte that the sink did not take.
    fn write_payload(&mut self, payload: &[VolatileSlice], skipped: usize) -> usize {
        let guards: Vec<_> = payload.iter().map(VolatileSlice::ptr_guard).collect();
        let part = |guard: &PtrGuard| libc::iovec { iov_base: guard.as_ptr().cast_mut().cast(), iov_len: guard.len() };
        let mut parts: Vec<_> = guards.iter().map(part).collect();
        let mut left = skip_bytes(&mut parts, skipped);
        let mut end = skipped;
        while !left.is_empty() {
            // SAFETY: the vectors describe guest memory, which stays mapped while the guards live, and which is only
            // read.
            let Some(count) = (unsafe { self.write(left) }) else { break };
            end += count;
            left = skip_bytes(left, count);
        }
        end
    }

    /// Copies a payload to the backlog, except for its first `skipped` bytes.
    fn push_backlog(&mut self, payload: &[VolatileSlice], mut skipped: usize) {
        for part in payload {
            let before = skipped.min(part.len());
            skipped -= before;
            if let Ok(rest) = part.offset(before) {
                self.backlog.push(&rest);
            }
        }
        self.publish_unwritten();
    }

    fn publish_unwritten(&self) {
        if let Some(flow) = &self.flow {
            flow.set_unwritten(self.backlog.len());
        }
    }

    /// Writes to the sink. `None` means that the sink takes nothing now, or is closed.
    ///
    /// # Safety
    /// `parts` describe readable memory.
    unsafe fn write(&mut self, parts: &[libc::iovec]) -> Option<usize> {
        let sink = self.sink.as_mut().filter(|sink| sink.ready)?;
        // SAFETY: the caller guarantees that `parts` are readable.
        match unsafe { sink.fd.write(parts) } {
            Ok(0) => {
                tracing::debug!(port = self.guest_port, "a stream's device accepts no data");
                self.drop_sink();
                None
            }
            Ok(count) => {
                self.credit.forward(count);
                Some(count)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                sink.ready = false;
                None
            }
            Err(error) => {
                tracing::debug!(port = self.guest_port, %error, "a stream's reader has closed it");
                self.drop_sink();
                None
            }
        }
    }

    /// Closes a sink without a reader. The guest's writers get `EPIPE`, as for a pipe.
    fn drop_sink(&mut self) {
        self.sink = None;
        self.backlog.clear();
        self.credit.forward_all();
        self.publish_unwritten();
        self.queue_shutdown(SHUTDOWN_RECEIVE);
    }

    fn close_drained_sink(&mut self) {
        if self.guest_shutdown & SHUTDOWN_SEND == 0 || !self.backlog.is_empty() {
            return;
        }
        if let Some(sink) = self.sink.take().filter(|_| self.exclusive_socket) {
            sink.fd.shutdown_write();
        }
    }

    fn queue_shutdown(&mut self, flags: u32) {
        self.host_shutdown |= flags;
        self.output.shutdown = true;
    }

    /// Tells the guest of new credit if that is due.
    fn schedule_credit_update(&mut self) {
        self.output.credit |= self.credit.is_update_due();
    }
}

/// The part of `parts` after the first `count` bytes.
fn skip_bytes(parts: &mut [libc::iovec], mut count: usize) -> &mut [libc::iovec] {
    let whole = parts.iter().take_while(|part| {
        let taken = part.iov_len <= count;
        count -= if taken { part.iov_len } else { 0 };
        taken
    });
    let whole = whole.count();
    let left = &mut parts[whole..];
    if let Some(first) = left.first_mut() {
        first.iov_base = first.iov_base.wrapping_byte_add(count);
        first.iov_len -= count;
    }
    left
}
