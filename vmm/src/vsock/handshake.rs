//! The first bytes of a connection, by which the agent's connections are told from those of other processes.

use agent::StreamSecret;
use vm_memory::VolatileSlice;

/// The bytes received so far of a connection that has not shown the secret. There are never more than the secret has.
#[derive(Debug, Default)]
pub(super) struct Handshake {
    bytes: [u8; StreamSecret::LENGTH],
    count: usize,
}

impl Handshake {
    /// Copies the next bytes out of a payload. Returns their number; the bytes after them are the stream's.
    pub(super) fn take(&mut self, payload: &[VolatileSlice]) -> usize {
        let before = self.count;
        for part in payload {
            self.count += part.copy_to(&mut self.bytes[self.count..]);
        }
        self.count - before
    }

    /// The received bytes, if they are as many as the secret has.
    pub(super) fn complete(&self) -> Option<&[u8; StreamSecret::LENGTH]> {
        (self.count == self.bytes.len()).then_some(&self.bytes)
    }
}
