//! One connection between the guest and two host descriptors: the stream protocol's state machine and its credit.

use std::io;
use std::num::Wrapping;
use std::sync::Arc;

use nix::sys::epoll::EpollFlags;
use vm_memory::VolatileSlice;
use vm_memory::volatile_memory::PtrGuard;

use super::backlog::Backlog;
use super::header::{OP_CREDIT_UPDATE, OP_RESPONSE, OP_RW, OP_SHUTDOWN, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::host_fd::{Direction, HostFd, Watcher};
use super::packet::GuestPacket;
use super::ports::{Flow, Listener};
use super::{BUFFER_SIZE, MAX_PAYLOAD, Packet};

/// The guest violated the protocol. Its connection is reset.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct ProtocolViolation(pub(super) &'static str);

/// A host descriptor and its readiness.
#[derive(Debug)]
struct Endpoint {
    fd: HostFd,
    /// False after a call would have blocked, until the watcher reports readiness.
    ready: bool,
}

impl Endpoint {
    fn new(
        fd: Option<std::os::fd::OwnedFd>,
        direction: Direction,
        key: u64,
        watcher: &Arc<Watcher>,
    ) -> io::Result<Option<Self>> {
        let Some(fd) = fd else { return Ok(None) };
        let token = key << 1 | u64::from(direction == Direction::Write);
        Ok(Some(Self { fd: HostFd::new(fd, direction, token, watcher)?, ready: true }))
    }
}

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
    source: Option<Endpoint>,
    sink: Option<Endpoint>,
    /// Whether the sink is a socket of this connection only.
    exclusive_socket: bool,
    backlog: Backlog,
    flow: Arc<Flow>,
    pending: PendingPackets,
    /// Flags of the host's last `OP_SHUTDOWN`, sent or pending.
    host_shutdown: u32,
    guest_shutdown: u32,
    /// The guest's side is closed. Only the backlog remains to be written.
    closed: bool,
    /// Bytes received, and the part of them that was written or dropped (`fwd_cnt`, virtio 1.2, 5.10.6.3).
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    /// The value of `forwarded` that was last sent to the guest.
    advertised_forwarded: Wrapping<u32>,
    sent: Wrapping<u32>,
    guest_forwarded: Wrapping<u32>,
    guest_buffer: u32,
    /// Whether the connection is in the backend's send queue.
    pub(super) queued: bool,
}

impl Connection {
    /// Accepts the guest's request. `key` identifies the connection, see [`super::backend::Backend`].
    pub(super) fn accept(
        request: &GuestPacket,
        listener: Listener,
        key: u64,
        watcher: &Arc<Watcher>,
    ) -> io::Result<Self> {
        let Listener { bridge, flow } = listener;
        Ok(Self {
            guest_port: request.src_port(),
            source: Endpoint::new(bridge.source, Direction::Read, key, watcher)?,
            sink: Endpoint::new(bridge.sink, Direction::Write, key, watcher)?,
            exclusive_socket: bridge.exclusive_socket,
            backlog: Backlog::default(),
            flow,
            pending: PendingPackets { response: true, ..PendingPackets::default() },
            host_shutdown: 0,
            guest_shutdown: 0,
            closed: false,
            received: Wrapping(0),
            forwarded: Wrapping(0),
            advertised_forwarded: Wrapping(0),
            sent: Wrapping(0),
            guest_forwarded: Wrapping(request.fwd_cnt()),
            guest_buffer: request.buf_alloc(),
            queued: false,
        })
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
        self.guest_buffer = packet.buf_alloc();
        self.guest_forwarded = Wrapping(packet.fwd_cnt());
    }

    /// The guest requests a credit update.
    pub(super) fn credit_request(&mut self) {
        self.pending.credit = true;
    }

    /// Handles data from the guest.
    pub(super) fn receive(&mut self, packet: &GuestPacket) -> Result<(), ProtocolViolation> {
        if self.guest_shutdown & SHUTDOWN_SEND != 0 {
            return Err(ProtocolViolation("data after the end of data"));
        }
        if packet.len() > BUFFER_SIZE - (self.received - self.forwarded).0 {
            return Err(ProtocolViolation("more data than its credit allows"));
        }
        self.received += packet.len();
        let written = if self.backlog.is_empty() { self.write_payload(packet.payload()) } else { 0 };
        if self.sink.is_none() {
            // The data is dropped. The guest was told that the host receives no more, or the bridge has no sink.
            self.forwarded = self.received;
        } else if written < packet.len() as usize {
            self.push_backlog(packet.payload(), written);
        }
        self.schedule_credit_update();
        Ok(())
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
        self.flow.set_unwritten(self.backlog.len());
        self.schedule_credit_update();
        self.close_drained_sink();
    }

    /// Whether [`Connection::fill`] may have a packet.
    pub(super) fn has_output(&self) -> bool {
        let PendingPackets { response, credit, shutdown } = self.pending;
        let readable = self.source.as_ref().is_some_and(|source| source.ready) && self.credit() > 0;
        !self.closed && (response || credit || shutdown || readable)
    }

    /// Fills `packet` with the next packet to the guest: operation, flags, payload and credit. Returns false if there
    /// is none.
    pub(super) fn fill(&mut self, packet: &mut Packet) -> bool {
        if self.closed {
            return false;
        }
        packet.set_flags(0).set_len(0);
        if std::mem::take(&mut self.pending.response) {
            packet.set_op(OP_RESPONSE);
        } else if !self.pending.shutdown
            && let Some(count) = self.read_to(packet)
        {
            packet.set_op(OP_RW).set_len(count);
        } else if std::mem::take(&mut self.pending.shutdown) {
            packet.set_op(OP_SHUTDOWN).set_flags(self.host_shutdown);
        } else if self.pending.credit {
            packet.set_op(OP_CREDIT_UPDATE);
        } else {
            return false;
        }
        // Every packet carries the host's credit.
        self.pending.credit = false;
        self.advertised_forwarded = self.forwarded;
        packet.set_dst_port(self.guest_port).set_buf_alloc(BUFFER_SIZE).set_fwd_cnt(self.forwarded.0);
        true
    }

    /// The number of bytes that the guest has buffer space for. It is 0 if the guest claims to have forwarded more than
    /// was sent.
    fn credit(&self) -> u32 {
        self.guest_buffer.saturating_sub((self.sent - self.guest_forwarded).0)
    }

    /// Reads from the source into the packet's buffer in guest memory.
    fn read_to(&mut self, packet: &Packet) -> Option<u32> {
        let credit = self.credit();
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
                self.sent += count;
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

    /// Writes a payload from guest memory to the sink. Returns the number of bytes that the sink took.
    fn write_payload(&mut self, payload: &[VolatileSlice]) -> usize {
        let guards: Vec<_> = payload.iter().map(VolatileSlice::ptr_guard).collect();
        let part = |guard: &PtrGuard| libc::iovec { iov_base: guard.as_ptr().cast_mut().cast(), iov_len: guard.len() };
        let mut parts: Vec<_> = guards.iter().map(part).collect();
        let mut left = &mut parts[..];
        let mut written = 0;
        while !left.is_empty() {
            // SAFETY: the vectors describe guest memory, which stays mapped while the guards live, and which is only
            // read.
            let Some(count) = (unsafe { self.write(left) }) else { break };
            written += count;
            left = skip_bytes(left, count);
        }
        written
    }

    /// Copies the part of a payload that the sink did not take to the backlog.
    fn push_backlog(&mut self, payload: &[VolatileSlice], mut written: usize) {
        for part in payload {
            let skipped = written.min(part.len());
            written -= skipped;
            if let Ok(rest) = part.offset(skipped) {
                self.backlog.push(&rest);
            }
        }
        self.flow.set_unwritten(self.backlog.len());
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
                self.forwarded += u32::try_from(count).unwrap_or(u32::MAX);
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
        self.forwarded = self.received;
        self.flow.set_unwritten(0);
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
        self.pending.shutdown = true;
    }

    /// Schedules a credit update before the guest runs out of credit, but not after every packet.
    fn schedule_credit_update(&mut self) {
        // A guest may send more than it was told: up to the credit that it has by now.
        let guest_sees = BUFFER_SIZE.saturating_sub((self.received - self.advertised_forwarded).0);
        if guest_sees < BUFFER_SIZE / 2 && self.forwarded != self.advertised_forwarded {
            self.pending.credit = true;
        }
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
