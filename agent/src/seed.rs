//! Random bytes for a guest.

use serde::{Deserialize, Serialize};

/// Random bytes with which a guest starts its generator of random numbers anew. Its debug output does not contain them.
#[derive(Clone, Copy, Deserialize, Serialize)]
pub struct Seed([u8; Self::LENGTH]);

impl Seed {
    /// The number of bytes: the strength of Linux's generator.
    pub const LENGTH: usize = 32;

    /// The seed that consists of `bytes`, which are random.
    #[must_use]
    pub fn new(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }
}

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seed").finish_non_exhaustive()
    }
}
