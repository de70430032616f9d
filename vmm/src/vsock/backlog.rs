//! Bytes from the guest that the sink has not taken yet.

use vm_memory::VolatileSlice;

/// Bytes of memory that stay allocated for the next backlog.
const KEPT_CAPACITY: usize = 16 << 10;

/// A queue of bytes whose content is one slice. The guest's credit bounds its size.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    bytes: Vec<u8>,
    /// The number of consumed bytes at the start of `bytes`.
    start: usize,
}

impl Backlog {
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Copies part of a packet's payload out of guest memory.
    pub(super) fn push(&mut self, data: &VolatileSlice) {
        if self.start > 0 && self.start >= self.len() {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        let end = self.bytes.len();
        self.bytes.resize(end + data.len(), 0);
        data.copy_to(&mut self.bytes[end..]);
    }

    pub(super) fn consume(&mut self, count: usize) {
        self.start += count;
        if self.is_empty() {
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        self.start = 0;
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_CAPACITY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_keep_their_order_and_memory_is_freed() {
        let mut backlog = Backlog::default();
        let mut expected = 0_u8;
        for round in 0..100_u8 {
            let mut data = vec![round; 1000];
            backlog.push(&VolatileSlice::from(data.as_mut_slice()));
            if round % 2 == 1 {
                assert_eq!(backlog.as_slice()[0], expected);
                backlog.consume(1000);
                expected += 1;
            }
        }
        assert_eq!(backlog.len(), 50_000);
        assert!(backlog.bytes.len() <= 100_000, "consumed bytes are dropped");
        backlog.consume(50_000);
        assert!(backlog.is_empty() && backlog.bytes.capacity() <= KEPT_CAPACITY);
    }
}
