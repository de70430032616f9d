//! A driver that does what its input says to its queues and to guest memory.

use std::sync::Arc;

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Input;
use crate::arch::Memory;
use crate::virtio::device::{Activation, Interrupt, VirtQueue};
use crate::virtio::registers::RegisterPage;

/// Descriptors of each queue. Few, so that indices often wrap.
pub(super) const QUEUE_SIZE: u16 = 16;

/// Memory of a queue's rings in bytes: descriptors, available ring, used ring.
const QUEUE_AREA: u64 = 0x400;
const AVAIL: u64 = 0x100;
const USED: u64 = 0x200;

/// The first buffer. Each chain gets the space after the one before it, and the space is used again from its start.
const BUFFERS: u64 = 0x1_0000;
const BUFFERS_END: u64 = 0x8_0000;

/// Guest memory: two adjacent regions, and one behind a hole.
const REGIONS: [(u64, usize); 3] = [(0, 0x4_0000), (0x4_0000, 0x4_0000), (0x10_0000, 0x1_0000)];

pub(crate) struct RawDriver {
    pub(super) memory: Memory,
    interrupt: Interrupt,
    notify: Vec<EventFd>,
    next_buffer: u64,
    next_descriptor: u16,
}

thread_local! {
    /// A page of registers is never unmapped, so all runs use the same one.
    static REGISTERS: RegisterPage = RegisterPage::map(1).expect("a page")[0];
}

/// Memory of a guest that has written nothing yet.
fn memory() -> Memory {
    Memory::from_ranges(&REGIONS.map(|(start, size)| (GuestAddress(start), size))).expect("regions without overlap")
}

/// An interrupt that nobody receives, with its registers.
pub(super) fn interrupt() -> (Interrupt, RegisterPage) {
    let registers = REGISTERS.with(|page| *page);
    let interrupt = Interrupt::new(registers, Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd")));
    interrupt.restore(0, 0);
    (interrupt, registers)
}

/// Addresses of the rings of queue `index`: descriptors, available ring, used ring.
pub(super) fn rings(index: usize) -> [u64; 3] {
    let base = index as u64 * QUEUE_AREA;
    [base, base + AVAIL, base + USED]
}

impl RawDriver {
    pub(crate) fn new(queues: usize) -> Self {
        let notify = (0..queues).map(|_| EventFd::new(EFD_NONBLOCK).expect("an eventfd")).collect();
        Self { memory: memory(), interrupt: interrupt().0, notify, next_buffer: BUFFERS, next_descriptor: 0 }
    }

    /// The activation of a device whose driver has set up all queues.
    pub(crate) fn activation(&self, features: u64, event_idx: bool) -> Activation {
        let queue = |(index, notify): (usize, &EventFd)| {
            let mut queue = Queue::new(QUEUE_SIZE).expect("a power of two");
            let [descriptors, avail, used] = rings(index).map(|address| u32::try_from(address).expect("low"));
            queue.set_desc_table_address(Some(descriptors), Some(0));
            queue.set_avail_ring_address(Some(avail), Some(0));
            queue.set_used_ring_address(Some(used), Some(0));
            queue.set_event_idx(event_idx);
            queue.set_ready(true);
            VirtQueue { queue, notify: notify.try_clone().expect("an eventfd") }
        };
        let queues = self.notify.iter().enumerate().map(queue).collect();
        Activation { memory: self.memory.clone(), queues, interrupt: self.interrupt.clone(), features }
    }

    /// Queues that the driver has not set up.
    pub(super) fn new_queues(&self, sizes: &[u16]) -> Vec<VirtQueue> {
        let queue = |(size, notify): (&u16, &EventFd)| VirtQueue::new(*size, notify.try_clone().expect("an eventfd"));
        sizes.iter().zip(&self.notify).map(queue).collect()
    }

    pub(super) fn queue_count(&self) -> usize {
        self.notify.len()
    }

    /// Notifies the device of a queue.
    pub(crate) fn notify(&self, queue: usize) {
        // The write fails if the counter is full, and then the notification is pending.
        let _ = self.notify[queue].write(1);
    }

    /// One step of the driver, which the input describes. Each can occur at any time.
    pub(crate) fn step(&mut self, input: &mut Input<'_>) {
        let kind = input.u8();
        let queue = usize::from(kind >> 4) % self.notify.len();
        match kind % 8 {
            0 => self.add_chain_of_input(queue, input),
            1 => self.write_descriptor(rings(queue)[0], input),
            2 => self.write_memory(input),
            3 => self.store(rings(queue)[1] + 2, input.u16()),
            4 => self.make_available(queue, input.u16()),
            5 => self.add_indirect_chain(queue, input),
            6 => self.store(rings(queue)[1], input.u16()),
            _ => self.notify(queue),
        }
    }

    /// Adds a valid chain: `readable` in as many descriptors as there are slices, then writable buffers of these lengths. Returns the
    /// addresses of all buffers.
    pub(crate) fn add_chain(&mut self, queue: usize, readable: &[&[u8]], writable: &[u32]) -> Vec<u64> {
        let lengths = readable.iter().map(|bytes| u32::try_from(bytes.len()).expect("short"));
        let parts: Vec<_> = lengths
            .map(|length| (length, 0))
            .chain(writable.iter().map(|length| (*length, VRING_DESC_F_WRITE)))
            .collect();
        let head = self.next_descriptor;
        let mut addresses = Vec::new();
        for (position, (length, flags)) in parts.iter().enumerate() {
            let address = self.allocate(*length);
            if let Some(bytes) = readable.get(position) {
                self.write(address, bytes);
            }
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % QUEUE_SIZE;
            let more = if position + 1 < parts.len() { VRING_DESC_F_NEXT } else { 0 };
            let place = rings(queue)[0] + 16 * u64::from(index);
            self.describe(place, address, *length, flags | more, self.next_descriptor);
            addresses.push(address);
        }
        self.make_available(queue, head);
        addresses
    }

    /// Space for a buffer of `length` bytes.
    fn allocate(&mut self, length: u32) -> u64 {
        if self.next_buffer + u64::from(length) > BUFFERS_END {
            self.next_buffer = BUFFERS;
        }
        let address = self.next_buffer;
        self.next_buffer += u64::from(length);
        address
    }

    /// A chain with readable and writable parts of any lengths.
    fn add_chain_of_input(&mut self, queue: usize, input: &mut Input<'_>) {
        let counts = input.u8();
        let readable: Vec<_> = (0..counts % 4).map(|_| usize::from(input.u8())).collect();
        let writable: Vec<_> = (0..counts / 4 % 4).map(|_| u32::from(input.u16())).collect();
        let readable: Vec<_> = readable.into_iter().map(|length| input.bytes(length)).collect();
        self.add_chain(queue, &readable, &writable);
    }

    /// A descriptor of an indirect table, and the table's descriptors, which may be indirect themselves.
    fn add_indirect_chain(&mut self, queue: usize, input: &mut Input<'_>) {
        let count = input.u8() % 8;
        let table = self.allocate(16 * u32::from(count));
        for index in 0..count {
            self.write_descriptor_at(table + 16 * u64::from(index), input);
        }
        let head = self.next_descriptor;
        self.next_descriptor = (head + 1) % QUEUE_SIZE;
        let place = rings(queue)[0] + 16 * u64::from(head);
        let length = 16 * u32::from(count) + u32::from(input.u8() / 128);
        self.describe(place, table, length, VRING_DESC_F_INDIRECT, 0);
        self.make_available(queue, head);
    }

    fn write_descriptor(&self, table: u64, input: &mut Input<'_>) {
        let index = u64::from(input.u8()) % u64::from(QUEUE_SIZE);
        self.write_descriptor_at(table + 16 * index, input);
    }

    fn write_descriptor_at(&self, place: u64, input: &mut Input<'_>) {
        let [flags, next] = input.array();
        let length = if flags & 0x40 == 0 { u32::from(input.u16()) } else { input.u32() };
        let address = address(flags & 0x80 != 0, input);
        self.describe(place, address, length, u32::from(flags & 0x3f), u16::from(next));
    }

    fn write_memory(&self, input: &mut Input<'_>) {
        let length = input.u8();
        let address = address(length & 0x80 != 0, input);
        self.write(address, input.bytes(usize::from(length & 0x7f)));
    }

    fn describe(&self, place: u64, address: u64, length: u32, flags: u32, next: u16) {
        let (low, flags) = (length.to_le_bytes(), u16::try_from(flags).expect("16 bits").to_le_bytes());
        self.write(place, &[&address.to_le_bytes()[..], &low, &flags, &next.to_le_bytes()].concat());
    }

    fn make_available(&self, queue: usize, head: u16) {
        let avail = rings(queue)[1];
        let index: u16 = self.memory.read_obj(GuestAddress(avail + 2)).expect("a ring is in memory");
        self.store(avail + 4 + 2 * u64::from(index % QUEUE_SIZE), head);
        self.store(avail + 2, index.wrapping_add(1));
    }

    fn store(&self, address: u64, value: u16) {
        self.write(address, &value.to_le_bytes());
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        // What lies outside of memory is not written.
        let _ = self.memory.write_slice(bytes, GuestAddress(address));
    }
}

/// An address of the input: any, or one in or near memory.
fn address(any: bool, input: &mut Input<'_>) -> u64 {
    if any { input.u64() } else { u64::from(input.u16()) << 5 }
}
