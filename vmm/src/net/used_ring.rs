//! Giving several chains back at once.
//!
//! A frame that fills several buffers is one frame to the driver only if it sees all of them used together: Linux
//! drops a frame whose later buffers it does not find yet. `virtio_queue` publishes each chain by itself, so the entries
//! before the last are written here.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_ALIGN_SIZE;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::virtio::device::Memory;

/// Where a used ring's entries begin, and how long each is (virtio 1.2, 2.7.8).
const RING: u64 = 4;
const ENTRY: u64 = 8;

/// A used chain: its head and the bytes written to it.
pub(super) type UsedChain = (u16, u32);

/// Gives `chains` back in one step. An empty list is nothing to do.
pub(super) fn add_used(queue: &mut Queue, memory: &Memory, chains: &[UsedChain]) -> Result<(), virtio_queue::Error> {
    let Some(((last_head, last_length), before)) = chains.split_last() else { return Ok(()) };
    let mut next = Wrapping(queue.next_used());
    for (head, length) in before {
        let place = queue.used_ring() + RING + ENTRY * u64::from(next.0 % queue.size());
        write_entry(memory, place, *head, *length).map_err(virtio_queue::Error::GuestMemory)?;
        next += 1;
    }
    queue.set_next_used(next.0);
    queue.add_used(memory, *last_head, *last_length)
}

fn write_entry(memory: &Memory, place: u64, head: u16, length: u32) -> Result<(), GuestMemoryError> {
    memory.write_obj(u32::from(head).to_le(), GuestAddress(place))?;
    memory.write_obj(length.to_le(), GuestAddress(place + 4))
}

/// Whether the driver wants to hear of what became used since the index was `told` (virtio 1.2, 2.7.10).
pub(super) fn needs_notification(queue: &Queue, memory: &Memory, notified: u16) -> bool {
    // What was published has to be seen before the driver's wish is read.
    fence(Ordering::SeqCst);
    let avail = queue.avail_ring();
    if !queue.event_idx_enabled() {
        let flags: u16 = memory.load(GuestAddress(avail), Ordering::Relaxed).unwrap_or(0);
        return u32::from(u16::from_le(flags)) & virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT == 0;
    }
    let place = avail + RING + u64::from(VRING_AVAIL_ALIGN_SIZE) * u64::from(queue.size());
    let Ok(event) = memory.load::<u16>(GuestAddress(place), Ordering::Relaxed) else { return true };
    let (next, event) = (Wrapping(queue.next_used()), Wrapping(u16::from_le(event)));
    next - event - Wrapping(1) < next - Wrapping(notified)
}
