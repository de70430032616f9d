//! From a descriptor chain to the guest memory it describes.

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, Permissions, VolatileSlice};

use super::header::{HEADER_LEN, MAX_FRAME};
use crate::virtio::device::Memory;

/// Most descriptors of a chain. Linux needs 19 for the longest frame.
const MAX_DESCRIPTORS: usize = 256;

/// Which way a chain's bytes go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Access {
    /// A frame from the guest.
    Read,
    /// Room for a frame to the guest.
    Write,
}

/// The memory of `chain`; `None` where the chain is malformed: cut short, of the other direction, too long, or leaving
/// guest memory (virtio 1.2, 2.7.4 and 2.7.5).
pub(super) fn slices<'m>(
    chain: &mut DescriptorChain<impl Deref<Target = Memory>>,
    memory: &'m Memory,
    access: Access,
) -> Option<Vec<VolatileSlice<'m>>> {
    let mut found = Vec::new();
    let mut more = true;
    let permissions = if access == Access::Write { Permissions::Write } else { Permissions::Read };
    for (count, descriptor) in chain.enumerate() {
        if count == MAX_DESCRIPTORS || descriptor.is_write_only() != (access == Access::Write) {
            return None;
        }
        let length = usize::try_from(descriptor.len()).ok()?;
        for slice in memory.get_slices(descriptor.addr(), length, permissions).ok()? {
            found.push(slice.ok()?);
        }
        more = descriptor.has_next();
    }
    // The iterator ends a chain early that loops or leaves the table.
    (!more).then_some(found)
}

/// Bytes in `slices`.
pub(super) fn length(slices: &[VolatileSlice<'_>]) -> usize {
    slices.iter().map(VolatileSlice::len).fold(0, usize::saturating_add)
}

/// Whether `slices` can be a frame with its header.
pub(super) fn is_frame(slices: &[VolatileSlice<'_>]) -> bool {
    (HEADER_LEN + 1..=MAX_FRAME).contains(&length(slices))
}
