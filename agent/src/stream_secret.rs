//! The secret that authenticates the agent's connections.

use std::hint::black_box;

use serde::{Deserialize, Serialize};

/// A random number that only the VMM and the agent of one machine know. The agent sends its bytes first on every
/// connection except the control connection. Its debug output does not contain it.
#[derive(Clone, Copy, Deserialize, Serialize)]
pub struct StreamSecret([u8; Self::LENGTH]);

impl StreamSecret {
    /// Its number of bytes.
    pub const LENGTH: usize = 16;

    /// The secret that consists of `bytes`, which are random.
    #[must_use]
    pub fn new(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }

    /// The bytes that a connection begins with.
    #[must_use]
    pub fn bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }

    /// Whether `bytes` are the secret. The time that this takes does not depend on the number of equal bytes.
    #[must_use]
    pub fn matches(&self, bytes: &[u8; Self::LENGTH]) -> bool {
        let differences = self.0.iter().zip(bytes).fold(0, |found, (ours, theirs)| black_box(found | (ours ^ theirs)));
        differences == 0
    }
}

impl std::fmt::Debug for StreamSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamSecret").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_counts() {
        let secret = StreamSecret::new(*b"0123456789abcdef");
        assert!(secret.matches(b"0123456789abcdef"));
        for bit in 0..8 * StreamSecret::LENGTH {
            let mut other = *secret.bytes();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!secret.matches(&other), "bit {bit}");
        }
    }

    #[test]
    fn debug_output_does_not_contain_it() {
        assert_eq!(format!("{:?}", StreamSecret::new([7; 16])), "StreamSecret { .. }");
    }
}
