//! Adding several chains to the used ring at once.
//!
//! With `VIRTIO_NET_F_MRG_RXBUF`, a frame may fill several chains. The driver must see all of them used at the same
//! time: Linux drops a frame if it does not find the later chains yet. `virtio_queue` makes each chain visible by
//! itself, so this module writes all entries except the last.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_ALIGN_SIZE;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::arch::Memory;

/// Offset of a used ring's entries, and their length, in bytes (virtio 1.2, 2.7.8).
const RING: u64 = 4;
const ENTRY: u64 = 8;

/// A used chain: its head and the number of bytes written to it.
pub(super) type UsedChain = (u16, u32);

/// Adds `chains` to the used ring in one step.
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

/// Whether the driver wants a notification of the chains used since index `notified` (virtio 1.2, 2.7.10).
pub(super) fn needs_notification(queue: &Queue, memory: &Memory, notified: u16) -> bool {
    // The used index must be visible before the driver's `used_event` or flags are read.
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
