//! The guest's memory as devices see it: mappings of this process at guest-physical addresses.
//!
//! A region of pluggable memory is mapped as a whole. Devices may access those of its blocks that are plugged (virtio 1.2, section
//! 5.15). Every translation of a guest-physical address ends in [`MemoryRegion::get_slice`], which checks that.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::bitmap::BS;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestRegionCollection, GuestRegionCollectionError, GuestRegionMmap, GuestUsize, MemoryRegionAddress, VolatileSlice,
};

/// The guest's memory. A clone has the same content and the same plugged blocks.
#[derive(Clone, Debug)]
pub struct Memory(GuestRegionCollection<MemoryRegion>);

impl Memory {
    /// Memory of these regions.
    ///
    /// # Errors
    /// There is no region, or they overlap or are not sorted by address.
    pub fn from_regions(regions: Vec<MemoryRegion>) -> Result<Self, GuestRegionCollectionError> {
        GuestRegionCollection::from_regions(regions).map(Self)
    }

    /// Memory with a mapping for each address and length in bytes. It is unmapped when the last clone is dropped. `None` if a range
    /// cannot be mapped, or if they overlap or are not sorted.
    #[must_use]
    pub fn from_ranges(ranges: &[(GuestAddress, usize)]) -> Option<Self> {
        let map = |(start, length): &(GuestAddress, usize)| GuestRegionMmap::from_range(*start, *length, None).ok();
        let regions = ranges.iter().map(|range| map(range).map(MemoryRegion::new));
        Self::from_regions(regions.collect::<Option<_>>()?).ok()
    }

    /// This memory and `region`.
    ///
    /// # Errors
    /// The region overlaps another one.
    pub fn insert_region(&self, region: Arc<MemoryRegion>) -> Result<Self, GuestRegionCollectionError> {
        self.0.insert_region(region).map(Self)
    }
}

impl GuestMemoryBackend for Memory {
    type R = MemoryRegion;

    fn num_regions(&self) -> usize {
        self.0.num_regions()
    }

    fn find_region(&self, address: GuestAddress) -> Option<&MemoryRegion> {
        self.0.find_region(address)
    }

    fn iter(&self) -> impl Iterator<Item = &MemoryRegion> {
        self.0.iter()
    }
}

/// A mapping at a guest-physical address.
#[derive(Debug)]
pub struct MemoryRegion {
    mapping: GuestRegionMmap<()>,
    /// The blocks of pluggable memory. Memory that the guest boots with has none.
    blocks: Option<PluggedBlocks>,
}

/// Which blocks of a region are plugged. The device that plugs them changes it, other threads read it.
#[derive(Debug)]
struct PluggedBlocks {
    /// Bytes of a block.
    size: u64,
    plugged: Box<[AtomicBool]>,
}

impl PluggedBlocks {
    /// Whether all blocks are plugged that have bytes among the `count` bytes from `offset`.
    fn has(&self, offset: u64, count: usize) -> bool {
        let Some(last) = offset.checked_add((count as u64).max(1) - 1) else { return false };
        let index = |offset: u64| usize::try_from(offset / self.size).unwrap_or(usize::MAX);
        // The driver learns of a plugged block by a response, which is written after the change.
        let blocks = self.plugged.get(index(offset)..=index(last));
        blocks.is_some_and(|blocks| blocks.iter().all(|plugged| plugged.load(Ordering::Acquire)))
    }
}

impl MemoryRegion {
    /// A region that the guest boots with.
    #[must_use]
    pub fn new(mapping: GuestRegionMmap<()>) -> Self {
        Self { mapping, blocks: None }
    }

    /// A region of pluggable memory in blocks of `block_size` bytes, which are all unplugged. What the region has after its last whole
    /// block is never plugged.
    #[must_use]
    pub fn pluggable(mapping: GuestRegionMmap<()>, block_size: u64) -> Self {
        let count = mapping.len() / block_size;
        let plugged = (0..count).map(|_| AtomicBool::new(false)).collect();
        Self { mapping, blocks: Some(PluggedBlocks { size: block_size, plugged }) }
    }

    /// Lets devices access these blocks, or no longer. Accesses that are under way do not end.
    ///
    /// # Panics
    /// The region has no such blocks.
    pub fn set_plugged(&self, blocks: Range<usize>, plugged: bool) {
        let all = self.blocks.as_ref().map(|blocks| &*blocks.plugged).unwrap_or_default();
        for block in &all[blocks] {
            block.store(plugged, Ordering::Release);
        }
    }

    /// The address of the region in this process. Unplugged blocks are mapped as well.
    #[must_use]
    pub fn host_address(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }
}

impl GuestMemoryRegion for MemoryRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.mapping.len()
    }

    fn start_addr(&self) -> GuestAddress {
        self.mapping.start_addr()
    }

    fn bitmap(&self) {}

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, ()>>, GuestMemoryError> {
        match &self.blocks {
            Some(blocks) if !blocks.has(offset.0, count) => Err(GuestMemoryError::InvalidBackendAddress),
            _ => self.mapping.get_slice(offset, count),
        }
    }
}

impl GuestMemoryRegionBytes for MemoryRegion {}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemory, Permissions};

    use super::*;

    const START: u64 = 1 << 30;
    const BLOCK: u64 = 4096;

    /// Memory of 64 KiB, and at [`START`] four blocks, of which the second and third are plugged.
    fn memory() -> (Memory, Arc<MemoryRegion>) {
        let mapping = GuestRegionMmap::from_range(GuestAddress(START), 4 * 4096, None).unwrap();
        let region = Arc::new(MemoryRegion::pluggable(mapping, BLOCK));
        region.set_plugged(1..3, true);
        let memory = Memory::from_ranges(&[(GuestAddress(0), 64 << 10)]).unwrap();
        (memory.insert_region(Arc::clone(&region)).unwrap(), region)
    }

    #[test]
    fn every_kind_of_access_reaches_plugged_blocks_only() {
        let (memory, _region) = memory();
        for (offset, count, reached) in [
            (0, 1, false),
            (BLOCK - 1, 1, false),
            (BLOCK - 1, 2, false),
            (BLOCK, 1, true),
            (BLOCK, 2 * 4096, true),
            (BLOCK, 2 * 4096 + 1, false),
            (3 * BLOCK - 1, 1, true),
            (3 * BLOCK - 1, 2, false),
            (3 * BLOCK, 1, false),
            (0, 4 * 4096, false),
            (BLOCK, 4 * 4096, false),
        ] {
            let address = GuestAddress(START + offset);
            let found = GuestMemory::get_slices(&memory, address, count, Permissions::Write)
                .unwrap()
                .all(|slice| slice.is_ok());
            let buffer = &mut vec![0; count];
            let read = memory.read_slice(buffer, address).is_ok();
            let written = memory.write_slice(buffer, address).is_ok();
            let in_range = GuestMemory::check_range(&memory, address, count, Permissions::Read);
            let direct = memory.get_slice(address, count).is_ok();
            assert_eq!([found, read, written, in_range, direct], [reached; 5], "{offset:#x}, {count}");
        }
        assert!(memory.load::<u16>(GuestAddress(START), Ordering::Acquire).is_err());
        assert!(memory.store(1_u16, GuestAddress(START), Ordering::Release).is_err());
        assert!(memory.get_host_address(GuestAddress(START + BLOCK)).is_err());
        assert!(memory.write_slice(&[0; 64 << 10], GuestAddress(0)).is_ok(), "memory of the boot has no blocks");
    }

    #[test]
    fn clones_see_changes_of_the_blocks() {
        let (memory, region) = memory();
        let clone = memory.clone();
        let write = || clone.write_obj(1_u8, GuestAddress(START + BLOCK));
        write().unwrap();
        region.set_plugged(1..2, false);
        assert!(write().is_err());
        region.set_plugged(0..4, true);
        write().unwrap();
        assert!(clone.write_slice(&[0; 4 * 4096], GuestAddress(START)).is_ok());
    }
}
