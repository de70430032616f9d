//! Any division of a request and its reply into descriptors, and any other content of a queue.

use proptest::collection::vec;
use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::device::next_chain;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const SIZE: u16 = 16;
const AVAIL: u64 = 0x400;
const USED: u64 = 0x500;
const TABLE: u64 = 0x600;
const BUFFERS: u64 = 0x1000;

/// Address, length, flags, next.
type Fields = (u64, u32, u16, u16);

/// Memory of two adjacent regions, whose border is between buffers.
fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), 0x1800), (GuestAddress(0x1800), 0x8000)]).unwrap()
}

fn queue() -> Queue {
    queue_of(SIZE)
}

fn queue_of(size: u16) -> Queue {
    let mut queue = Queue::new(size).unwrap();
    queue.try_set_desc_table_address(GuestAddress(0)).unwrap();
    queue.try_set_avail_ring_address(GuestAddress(AVAIL)).unwrap();
    queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
    queue.set_ready(true);
    queue
}

fn describe(memory: &Memory, table: u64, index: u64, (address, length, flags, next): Fields) {
    let bytes = [&address.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
    memory.write_slice(&bytes, GuestAddress(table + 16 * index)).unwrap();
}

/// Writes the chain of `lengths`, of which the first `readable` are readable, in its own table or in the queue's. Readable buffers have
/// ascending bytes.
fn write_chain(memory: &Memory, lengths: &[u32], readable: usize, is_indirect: bool) {
    let table = if is_indirect { TABLE } else { 0 };
    let (mut address, mut byte) = (BUFFERS, 0_u8);
    for (index, length) in (0_u16..).zip(lengths) {
        let position = usize::from(index);
        let more = if position + 1 < lengths.len() { NEXT } else { 0 };
        let write = if position < readable { 0 } else { WRITE };
        describe(memory, table, index.into(), (address, *length, more | write, index + 1));
        for place in (address..).take(if position < readable { *length as usize } else { 0 }) {
            memory.write_obj(byte, GuestAddress(place)).unwrap();
            byte = byte.wrapping_add(1);
        }
        address += u64::from(*length) + 3;
    }
    if is_indirect {
        describe(memory, 0, 0, (TABLE, 16 * u32::try_from(lengths.len()).unwrap(), INDIRECT, 0));
    }
}

fn make_available(memory: &Memory, head: u16, index: u16) {
    memory.write_obj(head, GuestAddress(AVAIL + 4 + 2 * u64::from((index.wrapping_sub(1)) % SIZE))).unwrap();
    memory.write_obj(index, GuestAddress(AVAIL + 2)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn a_request_may_be_divided_at_any_place(
        lengths in vec(0..700_u32, 1..=usize::from(SIZE)), readable in 0..=usize::from(SIZE), is_indirect in any::<bool>(),
    ) {
        let (memory, readable) = (memory(), readable.min(lengths.len()));
        write_chain(&memory, &lengths, readable, is_indirect);
        make_available(&memory, 0, 1);
        let chain = next_chain(&mut queue(), &memory).unwrap();
        let (mut request, reply) = buffers(chain, &memory).unwrap();
        let sum = |lengths: &[u32]| lengths.iter().sum::<u32>() as usize;
        prop_assert_eq!((request.len(), reply.len()), (sum(&lengths[..readable]), sum(&lengths[readable..])));
        let mut bytes = vec![0; request.len()];
        prop_assert!(request.read(&mut bytes));
        prop_assert!(bytes.iter().zip(0..).all(|(byte, position): (&u8, usize)| usize::from(*byte) == position % 256));
    }

    /// Chains of any descriptors are read like this: follow `next` until a descriptor without it; every buffer is in memory; no readable
    /// buffer is behind a writable one.
    #[test]
    fn a_chain_is_accepted_if_and_only_if_it_is_valid(
        table in vec((0..0x9900_u64, 0..0x200_u32, 0..4_u16, 0..=SIZE), usize::from(SIZE)), head in 0..SIZE,
    ) {
        let memory = memory();
        for (index, fields) in (0..).zip(&table) {
            describe(&memory, 0, index, *fields);
        }
        make_available(&memory, head, 1);
        let found = buffers(next_chain(&mut queue(), &memory).unwrap(), &memory).map(|(request, reply)| (request.len(), reply.len()));
        prop_assert_eq!(found, expected(&table, &[], head));
    }

    /// The available ring gives each chain once and in order, wherever its index starts. Without further chains, the device asks for a
    /// notification of the next one.
    #[test]
    fn every_chain_is_taken_once(adds in vec(0..=SIZE, 1..200), has_event_idx in any::<bool>(), start in any::<u16>()) {
        let memory = memory();
        let mut queue = queue();
        queue.set_event_idx(has_event_idx);
        queue.set_next_avail(start);
        queue.set_next_used(start);
        memory.write_obj(start, GuestAddress(AVAIL + 2)).unwrap();
        (0..SIZE).for_each(|index| describe(&memory, 0, index.into(), (BUFFERS, 8, 0, 0)));
        let mut added = start;
        for count in adds {
            let heads: Vec<u16> = (0..count).map(|more| added.wrapping_add(more) % SIZE).collect();
            for head in &heads {
                added = added.wrapping_add(1);
                make_available(&memory, *head, added);
            }
            let taken: Vec<u16> = std::iter::from_fn(|| next_chain(&mut queue, &memory)).map(|chain| chain.head_index()).collect();
            prop_assert_eq!(taken, heads);
            taken_all(&memory, added, has_event_idx)?;
        }
    }

    /// The driver cannot have added more chains than the queue has.
    #[test]
    fn a_false_index_gives_no_chain(index in SIZE + 1..u16::MAX) {
        let memory = memory();
        memory.write_obj(index, GuestAddress(AVAIL + 2)).unwrap();
        prop_assert!(next_chain(&mut queue(), &memory).is_none());
    }
}

/// Checks that the driver notifies the device of the next chain.
fn taken_all(memory: &Memory, added: u16, has_event_idx: bool) -> Result<(), TestCaseError> {
    let flags: u16 = memory.read_obj(GuestAddress(USED)).unwrap();
    let event: u16 = memory.read_obj(GuestAddress(USED + 4 + 8 * u64::from(SIZE))).unwrap();
    if has_event_idx {
        prop_assert_eq!(event, added);
    } else {
        prop_assert_eq!(flags & 1, 0);
    }
    Ok(())
}

/// The lengths of the readable and of the writable buffers of a valid chain. `indirect` has the other tables in memory, by address.
fn expected<'t>(mut table: &'t [Fields], indirect: &[(u64, &'t [Fields])], head: u16) -> Option<(usize, usize)> {
    let (mut lengths, mut index, mut left, mut is_indirect) = ((0, 0), head, table.len(), false);
    while left > 0 {
        let (address, length, flags, next) = *table.get(usize::from(index))?;
        if flags & INDIRECT != 0 {
            let (_, other) =
                indirect.iter().find(|(start, _)| *start == address && !is_indirect && length % 16 == 0)?;
            left = length as usize / 16;
            (table, index, is_indirect) = (other.get(..left)?, 0, true);
            continue;
        }
        let is_in_memory = length == 0 || address + u64::from(length) <= 0x9800;
        match flags & WRITE {
            _ if !is_in_memory => return None,
            0 if lengths.1 > 0 => return None,
            0 => lengths.0 += length as usize,
            _ => lengths.1 += length as usize,
        }
        if flags & NEXT == 0 {
            return Some(lengths);
        }
        (index, left) = (next, left - 1);
    }
    None
}

/// A table that descriptors refer to: a readable and a writable buffer.
const PAIR: [Fields; 2] = [(BUFFERS, 5, NEXT, 1), (BUFFERS, 6, WRITE, 0)];

/// One that a driver may not make: its descriptor refers to another table.
const NESTED: [Fields; 1] = [(TABLE, 32, INDIRECT, 0)];

/// The descriptors of the exhaustive test: every form that is read differently in a table of `size`.
fn descriptors(size: u16) -> Vec<Fields> {
    let buffers = [(BUFFERS, 8), (0x97f9, 8), (0x9900, 0)];
    let links = (0..=size).map(|next| (NEXT, next)).chain([(0, 0)]);
    let forms = links.flat_map(|link| [(link, 0), (link, WRITE)]);
    let plain =
        forms.flat_map(|((more, next), write)| buffers.map(|(address, length)| (address, length, more | write, next)));
    // Whole, cut short, empty, not of whole descriptors, nested, outside of memory.
    let tables = [(TABLE, 32), (TABLE, 16), (TABLE, 0), (TABLE, 33), (TABLE + 64, 16), (0x9800, 32)];
    plain.chain(tables.map(|(address, length)| (address, length, INDIRECT, 0))).collect()
}

/// All contents of a table of four descriptors, of which the last ends a chain.
#[test]
fn every_chain_of_a_small_table_is_accepted_if_and_only_if_it_is_valid() {
    const SMALL: u16 = 4;
    let (memory, indirect) = (memory(), [(TABLE, &PAIR[..]), (TABLE + 64, &NESTED[..])]);
    for (start, table) in indirect {
        (0..).zip(table).for_each(|(index, fields)| describe(&memory, start, index, *fields));
    }
    let (forms, last) = (descriptors(SMALL), (BUFFERS, 9, WRITE, 0));
    describe(&memory, 0, 3, last);
    make_available(&memory, 0, 1);
    let mut accepted = 0;
    for first in &forms {
        describe(&memory, 0, 0, *first);
        for second in &forms {
            describe(&memory, 0, 1, *second);
            for third in &forms {
                describe(&memory, 0, 2, *third);
                let chain = next_chain(&mut queue_of(SMALL), &memory).unwrap();
                let found = buffers(chain, &memory).map(|(request, reply)| (request.len(), reply.len()));
                assert_eq!(
                    found,
                    expected(&[*first, *second, *third, last], &indirect, 0),
                    "{first:?} {second:?} {third:?}"
                );
                accepted += usize::from(found.is_some());
            }
        }
    }
    assert!(accepted > forms.len().pow(2), "{accepted} valid chains");
}
