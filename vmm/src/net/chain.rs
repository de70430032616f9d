//! Conversion of descriptor chains to guest memory.

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, Permissions, VolatileSlice};

use super::header::{HEADER_LEN, MAX_FRAME};
use crate::arch::Memory;

/// The most descriptors of a chain. Linux needs 19 for the longest frame.
const MAX_DESCRIPTORS: usize = 256;

/// The direction of a chain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Access {
    /// The device reads a frame from the guest.
    Read,
    /// The device writes a frame to the guest.
    Write,
}

/// The guest memory of `chain`. `None` if the chain is malformed (virtio 1.2, 2.7.4 and 2.7.5): it is cut short, it has
/// a descriptor of the other direction, it is too long, or it leaves guest memory.
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
    // The iterator ends early if the chain loops or leaves the descriptor table.
    (!more).then_some(found)
}

/// Length of `slices` in bytes.
pub(super) fn length(slices: &[VolatileSlice<'_>]) -> usize {
    slices.iter().map(VolatileSlice::len).fold(0, usize::saturating_add)
}

/// Whether `slices` have a valid length for a frame with its header.
pub(super) fn is_frame(slices: &[VolatileSlice<'_>]) -> bool {
    (HEADER_LEN + 1..=MAX_FRAME).contains(&length(slices))
}
