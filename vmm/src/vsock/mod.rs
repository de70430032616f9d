//! The virtio-vsock device (virtio 1.2, section 5.10), wholly inside the VMM: no vhost, no host sockets.
//!
//! Every connection is made by the guest, to a host port that the controller listens on ([`Ports`]), and is bridged to
//! descriptors of the host: what is read from one goes to the guest, what the guest sends is written to the other. A
//! port takes one connection in its life, or is a service, which takes a bounded number at once: the guest can never make
//! the VMM keep more connections than the host has allowed for, however many it tries.
//!
//! ```text
//!  guest ── tx queue ─► Handler ─► Backend ─► Connection ─► Sink ─► descriptor
//!        ◄─ rx queue ──         ◄─         ◄─            ◄─ Source ◄─
//! ```
//!
//! [`Vsock`] is the device as the transport sees it; the handler is its work in the event loop.

mod backend;
mod backlog;
mod connection;
mod device;
mod handler;
mod host_fd;
mod packet;
mod ports;
#[cfg(test)]
mod tests;

pub use device::{Vsock, VsockState};
pub use ports::{Bridge, Connect, Flow, Ports};

/// Context id of the host (virtio 1.2, 5.10.4).
pub const HOST_CID: u64 = 2;

/// Context id of every guest. Each sandbox has a device of its own, so they need not differ.
pub const GUEST_CID: u64 = 3;

/// Credit given to the guest for each connection: the most bytes that wait in the VMM for a slow reader.
const BUFFER_SIZE: u32 = 256 << 10;

/// The largest payload the device takes in one packet; Linux sends at most this much.
const MAX_PAYLOAD: u32 = 64 << 10;

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

    /// Flag of `OP_SHUTDOWN`: the sender receives no more.
    pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
    /// Flag of `OP_SHUTDOWN`: the sender sends no more.
    pub(super) const SHUTDOWN_SEND: u32 = 2;
}

/// A packet to the guest, in its memory.
type Packet<'a> = virtio_vsock::packet::VsockPacket<'a, ()>;
