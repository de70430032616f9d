//! The credit of a connection: how much each side may send (virtio 1.2, 5.10.6.3). All counters are of bytes, modulo 2^32.

use std::num::Wrapping;

use super::BUFFER_SIZE;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Credit {
    /// Received from the guest, and the part of it that was written or dropped (`fwd_cnt`).
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    /// The value of `forwarded` that was last sent to the guest.
    advertised: Wrapping<u32>,
    sent: Wrapping<u32>,
    guest_forwarded: Wrapping<u32>,
    guest_buffer: u32,
}

impl Credit {
    /// The credit of a new connection whose guest has a buffer of this size.
    pub(super) fn new(guest_buffer: u32, guest_forwarded: u32) -> Self {
        Self {
            received: Wrapping(0),
            forwarded: Wrapping(0),
            advertised: Wrapping(0),
            sent: Wrapping(0),
            guest_forwarded: Wrapping(guest_forwarded),
            guest_buffer,
        }
    }

    /// Takes the guest's values, which every packet of the guest carries.
    pub(super) fn update(&mut self, guest_buffer: u32, guest_forwarded: u32) {
        self.guest_buffer = guest_buffer;
        self.guest_forwarded = Wrapping(guest_forwarded);
    }

    /// Counts data from the guest. `None` if it may not send so much.
    pub(super) fn receive(&mut self, length: u32) -> Option<()> {
        let allowed = BUFFER_SIZE.saturating_sub((self.received - self.forwarded).0);
        (length <= allowed).then(|| self.received += length)
    }

    /// Counts received data that was written or dropped.
    pub(super) fn forward(&mut self, count: usize) {
        self.forwarded += u32::try_from(count).unwrap_or(u32::MAX);
    }

    /// All received data was dropped.
    pub(super) fn forward_all(&mut self) {
        self.forwarded = self.received;
    }

    /// Whether the guest has to be told of new credit: before it runs out of credit, but not after every packet.
    pub(super) fn is_update_due(&self) -> bool {
        // A guest that takes no credit updates may send more than it knows to be allowed.
        let guest_sees = BUFFER_SIZE.saturating_sub((self.received - self.advertised).0);
        guest_sees < BUFFER_SIZE / 2 && self.forwarded != self.advertised
    }

    /// The value of `fwd_cnt` of a packet to the guest.
    pub(super) fn advertise(&mut self) -> u32 {
        self.advertised = self.forwarded;
        self.forwarded.0
    }

    /// The number of bytes that the guest has buffer space for. It is 0 if the guest claims to have forwarded more than was sent.
    pub(super) fn allowance(&self) -> u32 {
        self.guest_buffer.saturating_sub((self.sent - self.guest_forwarded).0)
    }

    /// Counts data that was sent to the guest.
    pub(super) fn send(&mut self, count: u32) {
        self.sent += count;
    }
}

#[cfg(test)]
#[path = "credit_tests.rs"]
mod tests;
