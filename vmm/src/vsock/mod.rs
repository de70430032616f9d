//! The virtio-vsock device (virtio 1.2, section 5.10). It is implemented in the VMM, without vhost and without host
//! sockets.
//!
//! The guest makes every connection, to a host port that the sandbox listens on ([`Ports`]). The device bridges the
//! connection to host descriptors: it sends what it reads from the source to the guest, and writes what the guest sends
//! to the sink. A port takes one connection in its life; a service's port takes a bounded number at a time. So the
//! number of connections that the guest can keep open is bounded by what the host has allowed.
//!
//! Every process of the guest that may use vsock can connect to every port, but only the agent's connections are
//! bridged. A connection is *pending* until its first bytes are the machine's secret, which only the agent got
//! ([`agent::StreamSecret`]). A pending connection has no descriptors. It gets no data and uses up no port, and their
//! number is bounded.
//!
//! ```text
//!  guest ── tx queue ─► Handler ─► Backend ─► Connection ─► sink   ─► host descriptor
//!        ◄─ rx queue ──         ◄─         ◄─            ◄─ source ◄─
//! ```
//!
//! [`Vsock`] is the device as the transport sees it. The handler serves its queues in the event loop.

mod backend;
mod backlog;
mod connection;
mod credit;
mod device;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod handler;
mod handshake;
mod host_fd;
mod packet;
mod ports;
#[cfg(test)]
mod tests;

pub use device::{Vsock, VsockState};
pub use ports::{Bridge, Connect, Flow, Ports};

/// Context id of the host (virtio 1.2, 5.10.4).
pub const HOST_CID: u64 = 2;

/// Context id of every guest. Each sandbox has its own device, so all guests can have the same id.
pub const GUEST_CID: u64 = 3;

/// The credit of each connection: the most bytes that wait in the VMM for a slow reader.
const BUFFER_SIZE: u32 = 256 << 10;

/// The most bytes of payload that the device takes in one packet. Linux sends at most this many.
const MAX_PAYLOAD: u32 = 64 << 10;

/// The most pending connections. One more takes the place of the oldest, so that idle ones do not keep out the agent's.
const MAX_PENDING: usize = 128;

/// Values of the packet header's fields (virtio 1.2, 5.10.6).
mod header {
    pub(super) const TYPE_STREAM: u16 = 1;

    pub(super) const OP_REQUEST: u16 = 1;
    pub(super) const OP_RESPONSE: u16 = 2;
    pub(super) const OP_RST: u16 = 3;
    pub(super) const OP_SHUTDOWN: u16 = 4;
    pub(super) const OP_RW: u16 = 5;
    pub(super) const OP_CREDIT_UPDATE: u16 = 6;
    pub(super) const OP_CREDIT_REQUEST: u16 = 7;

    /// Flag of `OP_SHUTDOWN`: the sender will not receive any more data.
    pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
    /// Flag of `OP_SHUTDOWN`: the sender will not send any more data.
    pub(super) const SHUTDOWN_SEND: u32 = 2;
}

/// A packet to the guest, in guest memory.
type Packet<'a> = virtio_vsock::packet::VsockPacket<'a, ()>;
