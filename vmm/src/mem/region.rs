//! The memory of the region in this process.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryRegion};

use super::BLOCK_SIZE;
use crate::arch::MemoryRegion;

/// The mapping cannot be the device's region.
#[derive(Debug, Error)]
#[error("{length} bytes at {start:#x} are not whole blocks of {BLOCK_SIZE} bytes")]
pub struct RegionError {
    start: u64,
    length: u64,
}

/// A private anonymous mapping of whole blocks. Only this device discards its pages.
#[derive(Clone, Debug)]
pub struct Region(Arc<MemoryRegion>);

impl Region {
    /// The region in `mapping`, which is private and anonymous and has blocks of [`BLOCK_SIZE`].
    ///
    /// # Errors
    /// The mapping does not start and end at a block boundary.
    pub fn new(mapping: Arc<MemoryRegion>) -> Result<Self, RegionError> {
        let (start, length) = (mapping.start_addr().0, mapping.len());
        match (start | length) % BLOCK_SIZE {
            0 => Ok(Self(mapping)),
            _ => Err(RegionError { start, length }),
        }
    }

    /// The guest-physical address of the region.
    #[must_use]
    pub fn start(&self) -> GuestAddress {
        self.0.start_addr()
    }

    /// The length of the region in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.0.len()
    }

    /// The address of the region in this process.
    #[must_use]
    pub fn host_address(&self) -> u64 {
        self.0.host_address() as u64
    }

    /// Lets devices access a block, or no longer.
    ///
    /// # Panics
    /// The region has no such block.
    pub(super) fn set_plugged(&self, block: usize, plugged: bool) {
        self.0.set_plugged(block..block + 1, plugged);
    }

    /// Returns the memory of these blocks to the host. From then on they read as zeros.
    ///
    /// # Panics
    /// The region has no such blocks.
    pub(super) fn discard(&self, blocks: Range<usize>) -> io::Result<()> {
        let block = usize::try_from(BLOCK_SIZE).expect("2 MiB");
        let whole = usize::try_from(self.length()).expect("it is mapped");
        assert!(blocks.start <= blocks.end && blocks.end <= whole / block, "the region has no blocks {blocks:?}");
        let (offset, length) = (blocks.start * block, blocks.len() * block);
        // SAFETY: the assertion above keeps the range within the mapping, which `self` owns. The mapping is guest
        // memory: no Rust reference to its contents exists, and all code that copies from or to it allows it to change
        // at any time.
        let result = unsafe { libc::madvise(self.0.host_address().add(offset).cast(), length, libc::MADV_DONTNEED) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
