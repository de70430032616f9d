//! Guest memory: one mapping for each range of guest-physical addresses.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use thiserror::Error;
use vm_memory::{GuestAddress, GuestRegionCollectionError, GuestRegionMmap, MmapRegion};

use crate::arch::{Memory, MemoryRegion, layout};
use crate::machine::template::MEMORY_OFFSET;
use crate::mem::BLOCK_SIZE;

/// Alignment of the mappings in bytes. Host and guest addresses then agree modulo this size, so that the host can use huge
/// pages for the guest.
const HUGE_PAGE: usize = 2 << 20;

const PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Where the content of guest memory comes from, and where changes go.
#[derive(Clone, Copy, Debug)]
pub enum Backing<'a> {
    /// Zeros. The memory is private.
    Zeros,
    /// A template's file. Changes are private.
    Template(&'a File),
    /// The file of a template that is being made. Changes go into the file.
    NewTemplate(&'a File),
}

impl Backing<'_> {
    /// Flags, descriptor and offset of the mapping.
    fn mapping(self) -> (i32, RawFd, i64) {
        let offset = MEMORY_OFFSET.cast_signed();
        match self {
            Self::Zeros => (FLAGS, -1, 0),
            Self::Template(file) => (libc::MAP_PRIVATE | libc::MAP_NORESERVE, file.as_raw_fd(), offset),
            Self::NewTemplate(file) => (libc::MAP_SHARED, file.as_raw_fd(), offset),
        }
    }
}

/// Why guest memory cannot be mapped.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host has not enough address space.
    #[error("cannot map {0} bytes for the guest's memory")]
    Map(usize, #[source] io::Error),
    /// `vm-memory` refuses the mapping.
    #[error("the mapping of the guest's memory at {0:#x} is unusable")]
    Region(u64),
    /// `vm-memory` refuses the ranges.
    #[error("cannot put the guest's memory together")]
    Collection(#[from] GuestRegionCollectionError),
    /// The size exceeds the host's address space.
    #[error("{0} bytes are more than this host can address")]
    TooLarge(u64),
}

/// Maps `size` bytes of memory at the addresses of the machine's layout. The host allocates a page when it is accessed first. Memory of
/// a file is one range.
///
/// The mappings live as long as the process, because vCPUs and devices use them until its end.
///
/// # Errors
/// The address space is too small.
pub fn map(size: u64, backing: Backing<'_>) -> Result<Memory, MemoryError> {
    let map = |(start, length)| map_region(start, length, backing).map(MemoryRegion::new);
    let regions = layout::memory_ranges(size).into_iter().map(map);
    Ok(Memory::from_regions(regions.collect::<Result<_, _>>()?)?)
}

/// Maps a region at `start` for pluggable memory, of which no block is plugged. Its size is `length` bytes, rounded up to a multiple of `unit`. On a host
/// without memory overcommit it may be smaller, down to one `unit`.
///
/// # Errors
/// Not even one `unit` can be mapped.
pub fn map_pluggable(start: GuestAddress, length: u64, unit: u64) -> Result<Arc<MemoryRegion>, MemoryError> {
    let mut length = length.next_multiple_of(unit).max(unit);
    loop {
        match map_region(start, length, Backing::Zeros) {
            Err(MemoryError::Map(_, error)) if length > unit => {
                tracing::debug!(%error, length, "the host does not overcommit that much memory");
                length = (length / 2).next_multiple_of(unit);
            }
            result => return result.map(|mapping| Arc::new(MemoryRegion::pluggable(mapping, BLOCK_SIZE))),
        }
    }
}

fn map_region(start: GuestAddress, length: u64, backing: Backing<'_>) -> Result<GuestRegionMmap<()>, MemoryError> {
    let length = usize::try_from(length).map_err(|_| MemoryError::TooLarge(length))?;
    let address = map_aligned(length, backing).map_err(|error| MemoryError::Map(length, error))?;
    // SAFETY: the mapping at `address` is `length` bytes long, nothing else uses it, and it is never unmapped.
    let region = unsafe { MmapRegion::build_raw(address, length, PROTECTION, FLAGS) };
    let region = region.map_err(|_| MemoryError::Region(start.0))?;
    GuestRegionMmap::new(region, start).ok_or(MemoryError::Region(start.0))
}

/// Maps `length` bytes at a multiple of [`HUGE_PAGE`].
fn map_aligned(length: usize, backing: Backing<'_>) -> io::Result<*mut u8> {
    let too_large = || io::Error::from_raw_os_error(libc::ENOMEM);
    let reserved = length.checked_add(HUGE_PAGE).ok_or_else(too_large)?;
    // SAFETY: a new mapping at an address that the kernel chooses affects no existing mapping.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), reserved, PROTECTION, FLAGS, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let before = address.align_offset(HUGE_PAGE);
    let after = HUGE_PAGE - before;
    // SAFETY: the mapping is `before + length + after` bytes long, so both pointers are within it or at its end. Nothing uses the
    // parts that are unmapped.
    unsafe {
        let aligned = address.add(before);
        unmap(address, before);
        unmap(aligned.add(length), after);
        map_file(aligned, length, backing)?;
        advise_huge_pages(aligned, length);
        Ok(aligned.cast())
    }
}

/// Replaces an anonymous mapping by that of the backing's file, if it has one.
///
/// # Safety
/// The `length` bytes at `address` must be a mapping of this process that nothing uses.
unsafe fn map_file(address: *mut libc::c_void, length: usize, backing: Backing<'_>) -> io::Result<()> {
    let (flags, file, offset) = backing.mapping();
    if file < 0 {
        return Ok(());
    }
    // SAFETY: the caller guarantees that the range that is replaced is a mapping that nothing uses.
    let mapped = unsafe { libc::mmap(address, length, PROTECTION, flags | libc::MAP_FIXED, file, offset) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Asks the host for huge pages. A boot accesses memory all over, and each first access of a page is an exit: 10,000 exits with
/// pages of 4 KiB, 2,400 with huge pages (512 MiB, measured in the test host). Only hosts that do not use huge pages by default
/// need this.
///
/// # Safety
/// The `length` bytes at `address` must be a mapping of this process.
unsafe fn advise_huge_pages(address: *mut libc::c_void, length: usize) {
    // SAFETY: the caller guarantees a mapping, and the advice does not change its content.
    if unsafe { libc::madvise(address, length, libc::MADV_HUGEPAGE) } != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "this host has no huge pages for the guest");
    }
}

/// # Safety
/// Nothing may use the `length` bytes at `address`.
unsafe fn unmap(address: *mut libc::c_void, length: usize) {
    if length > 0 {
        // SAFETY: the caller guarantees that nothing uses the range.
        let result = unsafe { libc::munmap(address, length) };
        debug_assert_eq!(result, 0, "a page-aligned range of a mapping can be unmapped");
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    use super::*;

    const HUGE: u64 = 128 << 20;

    #[test]
    fn small_memory_is_one_range_and_large_memory_is_two() {
        let small = map(64 << 20, Backing::Zeros).unwrap();
        assert_eq!(
            small.iter().map(|region| (region.start_addr().0, region.len())).collect::<Vec<_>>(),
            [(0, 64 << 20)]
        );
        let large = map(4 << 30, Backing::Zeros).unwrap();
        let ranges: Vec<_> = large.iter().map(|region| (region.start_addr().0, region.len())).collect();
        assert_eq!(ranges, [(0, 3 << 30), (4 << 30, 1 << 30)]);
    }

    #[test]
    fn host_and_guest_addresses_agree_modulo_a_huge_page() {
        for region in map((4 << 30) + (6 << 20), Backing::Zeros).unwrap().iter() {
            assert!(region.host_address().align_offset(HUGE_PAGE) == 0);
        }
    }

    #[test]
    fn first_and_last_byte_can_be_written_and_the_next_cannot() {
        let memory = map(64 << 20, Backing::Zeros).unwrap();
        memory.write_obj(1_u8, GuestAddress(0)).unwrap();
        memory.write_obj(2_u8, GuestAddress((64 << 20) - 1)).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress((64 << 20) - 1)).unwrap(), 2);
        assert!(memory.write_obj(3_u8, GuestAddress(64 << 20)).is_err());
    }

    #[test]
    fn the_pluggable_region_is_as_large_as_the_host_allows() {
        let map = |length| map_pluggable(GuestAddress(HUGE), length, HUGE).unwrap().len();
        assert_eq!((map(0), map(HUGE + 1)), (HUGE, 2 * HUGE));
        let most = map(1 << 50);
        assert!(most > HUGE && most < 1 << 48 && most % HUGE == 0, "{most:#x}");
    }

    #[test]
    fn more_than_the_address_space_is_an_error() {
        assert!(matches!(map(1 << 60, Backing::Zeros), Err(MemoryError::Map(..))));
    }
}
