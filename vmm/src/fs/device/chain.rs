//! Conversion of descriptor chains to the buffers of a request and its reply.

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, Permissions, VolatileSlice};

use crate::arch::Memory;
use crate::fs::protocol::buffers::Buffers;

/// The most descriptors of a chain. Linux uses one for each page, at most [`crate::fs::protocol::wire::MAX_PAGES`], and
/// a few for headers.
const MAX_DESCRIPTORS: usize = 1024;

/// The readable and the writable buffers of `chain`: the request, and the space for its reply. `None` if the chain is
/// malformed (virtio 1.2, 2.7.4 and 2.7.5): it is cut short, it has a readable descriptor after a writable one, it is
/// too long, or it leaves guest memory.
pub(in crate::fs) fn buffers<'m>(
    chain: DescriptorChain<impl Deref<Target = Memory>>,
    memory: &'m Memory,
) -> Option<(Buffers<'m>, Buffers<'m>)> {
    let (mut readable, mut writable) = (Vec::new(), Vec::new());
    let mut more = true;
    for (count, descriptor) in chain.enumerate() {
        if count == MAX_DESCRIPTORS {
            return None;
        }
        let (target, access) = match descriptor.is_write_only() {
            true => (&mut writable, Permissions::Write),
            false if writable.is_empty() => (&mut readable, Permissions::Read),
            false => return None,
        };
        let length = usize::try_from(descriptor.len()).ok()?;
        for slice in memory.get_slices(descriptor.addr(), length, access).ok()? {
            let slice: VolatileSlice<'m> = slice.ok()?;
            target.push(slice);
        }
        more = descriptor.has_next();
    }
    // The iterator ends early if the chain loops or leaves the descriptor table.
    (!more).then(|| (readable.into_iter().collect(), writable.into_iter().collect()))
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod property_tests;
#[cfg(test)]
mod tests {
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use virtio_queue::{Queue, QueueOwnedT};
    use vm_memory::GuestAddress;

    use super::*;

    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;

    fn memory() -> Memory {
        Memory::from_ranges(&[(GuestAddress(0), 0x10000), (GuestAddress(0x10000), 0x10000)]).unwrap()
    }

    /// Address, length, flags, next.
    type Fields = (u64, u32, u16, u16);

    /// The lengths in bytes of the readable and the writable buffers.
    fn lengths(descriptors: &[Fields]) -> Option<(usize, usize)> {
        let memory = memory();
        let mock = MockSplitQueue::new(&memory, 16);
        for (index, (address, length, flags, next)) in (0..).zip(descriptors) {
            let descriptor = Descriptor::new(*address, *length, *flags, *next);
            mock.desc_table().store(index, RawDescriptor::from(descriptor)).unwrap();
        }
        mock.avail().ring().ref_at(0).unwrap().store(0_u16.to_le());
        mock.avail().idx().store(1_u16.to_le());
        let mut queue: Queue = mock.create_queue().unwrap();
        let chain = queue.iter(&memory).unwrap().next().unwrap();
        buffers(chain, &memory).map(|(readable, writable)| (readable.len(), writable.len()))
    }

    #[test]
    fn valid_chains_become_buffers() {
        assert_eq!(lengths(&[(0x4000, 40, 0, 0)]), Some((40, 0)));
        assert_eq!(lengths(&[(0x4000, 40, NEXT, 1), (0x5000, 16, WRITE, 0)]), Some((40, 16)));
        assert_eq!(lengths(&[(0xfff0, 0x20, 0, 0)]), Some((0x20, 0)), "spanning regions");
        assert_eq!(lengths(&[(0x4000, 0, NEXT, 1), (0x5000, 8, 0, 0)]), Some((8, 0)), "an empty descriptor");
    }

    #[test]
    fn malformed_chains_are_rejected() {
        let malformed: [(&str, &[Fields]); 9] = [
            ("loop of one", &[(0x4000, 8, NEXT, 0)]),
            ("loop of two", &[(0x4000, 8, NEXT, 1), (0x5000, 8, NEXT, 0)]),
            ("next out of range", &[(0x4000, 8, NEXT, 99)]),
            ("readable behind writable", &[(0x4000, 8, NEXT | WRITE, 1), (0x5000, 8, 0, 0)]),
            ("beyond memory", &[(0x1_fff8, 9, 0, 0)]),
            ("address wraps", &[(u64::MAX - 3, 8, 0, 0)]),
            ("4 GiB", &[(0x4000, u32::MAX, 0, 0)]),
            ("indirect table of odd length", &[(0x4000, 17, INDIRECT, 0)]),
            ("indirect table beyond memory", &[(0x8_0000, 16, INDIRECT, 0)]),
        ];
        for (what, descriptors) in malformed {
            assert_eq!(lengths(descriptors), None, "{what}");
        }
    }
}
