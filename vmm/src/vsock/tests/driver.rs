//! A minimal vsock driver.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, ByteValued, Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::backend::Backend;
use super::super::handler::{EVENT, Handler, RX, TX};
use super::super::header::{OP_REQUEST, OP_RW, TYPE_STREAM};
use super::super::{GUEST_CID, HOST_CID, Ports};
use crate::arch::Memory;
use crate::virtio::device::{Activation, Interrupt, VirtQueue};
use crate::virtio::registers::RegisterPage;
use crate::virtio::testing::with_pluggable_blocks;

pub(super) const QUEUE_SIZE: u16 = 64;
const BUFFER: u64 = 0x1_1000;
const MEMORY: usize = 32 << 20;

/// A packet header as the driver writes it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Header {
    /// Low and high 32 bits, so that the structure has no padding.
    pub(super) src_cid: [u32; 2],
    pub(super) dst_cid: [u32; 2],
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

// SAFETY: the structure consists of integers without padding.
unsafe impl ByteValued for Header {}

impl Header {
    /// A header from guest port 9 with 64 KiB of credit.
    pub(super) fn new(dst_port: u32, op: u16) -> Self {
        Self {
            src_cid: cid(GUEST_CID),
            dst_cid: cid(HOST_CID),
            src_port: 9,
            dst_port,
            kind: TYPE_STREAM,
            op,
            buf_alloc: 64 << 10,
            ..Self::default()
        }
    }
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Descriptor {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

// SAFETY: the structure consists of integers without padding.
unsafe impl ByteValued for Descriptor {}

fn cid(cid: u64) -> [u32; 2] {
    [u32::try_from(cid).unwrap(), 0]
}

/// The rings of one queue, as the driver uses them.
struct Ring {
    base: u64,
    avail: u16,
    used: u16,
}

impl Ring {
    fn new(index: usize) -> Self {
        Self { base: 0x1000 + index as u64 * 0x4000, avail: 0, used: 0 }
    }

    fn queue(&self) -> Queue {
        let mut queue = Queue::new(QUEUE_SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(self.base)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(self.base + 0x1000)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(self.base + 0x2000)).unwrap();
        queue.set_ready(true);
        queue
    }

    fn describe(&self, memory: &Memory, index: u16, descriptor: Descriptor) {
        memory.write_obj(descriptor, GuestAddress(self.base + u64::from(index) * 16)).unwrap();
    }

    fn make_available(&mut self, memory: &Memory, head: u16) {
        let slot = self.base + 0x1000 + 4 + u64::from(self.avail % QUEUE_SIZE) * 2;
        memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.set_avail(memory, self.avail);
    }

    fn set_avail(&self, memory: &Memory, index: u16) {
        memory.write_obj(index, GuestAddress(self.base + 0x1000 + 2)).unwrap();
    }

    fn take_used(&mut self, memory: &Memory) -> Option<(u16, u32)> {
        let index: u16 = memory.read_obj(GuestAddress(self.base + 0x2000 + 2)).unwrap();
        if index == self.used {
            return None;
        }
        let slot = GuestAddress(self.base + 0x2000 + 4 + u64::from(self.used % QUEUE_SIZE) * 8);
        self.used = self.used.wrapping_add(1);
        let head: u32 = memory.read_obj(slot).unwrap();
        Some((head.try_into().unwrap(), memory.read_obj(slot.unchecked_add(4)).unwrap()))
    }
}

pub(super) struct Driver {
    pub(super) memory: Memory,
    pub(super) ports: Ports,
    pub(super) line: Arc<EventFd>,
    rings: [Ring; 3],
    notify: Vec<EventFd>,
    next: u16,
    handler: Handler,
}

impl Driver {
    /// A driver whose receive buffers are all available.
    pub(super) fn new() -> Self {
        let mut driver = Self::without_buffers(false);
        driver.add_receive_buffers(QUEUE_SIZE);
        driver
    }

    pub(super) fn without_buffers(restored: bool) -> Self {
        let memory = with_pluggable_blocks(&Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap());
        let ports = Ports::new().unwrap();
        let rings = [RX, TX, EVENT].map(Ring::new);
        let notify = || EventFd::new(EFD_NONBLOCK).unwrap();
        let queues: Vec<_> = rings.iter().map(|ring| VirtQueue { queue: ring.queue(), notify: notify() }).collect();
        let notifications = queues.iter().map(|queue| queue.notify.try_clone().unwrap()).collect();
        let line = Arc::new(notify());
        let interrupt = Interrupt::new(RegisterPage::map(1).unwrap()[0], Arc::clone(&line));
        let activation = Activation { memory: memory.clone(), queues, interrupt, features: 0 };
        let handler = Handler::new(activation, Backend::new(ports.clone()).unwrap(), restored);
        Self { memory, ports, line, rings, notify: notifications, next: 0, handler }
    }

    pub(super) fn add_receive_buffers(&mut self, count: u16) {
        self.add_receive_buffers_from(0, count);
    }

    pub(super) fn add_receive_buffers_from(&mut self, first: u16, end: u16) {
        for index in first..end {
            self.add_receive_buffer(index);
        }
    }

    fn add_receive_buffer(&mut self, index: u16) {
        self.add_receive_buffer_at(index, Self::buffer(RX, index));
    }

    pub(super) fn add_receive_buffer_at(&mut self, index: u16, addr: u64) {
        let flags = u16::try_from(VRING_DESC_F_WRITE).unwrap();
        let buffer = Descriptor { addr, len: 4096, flags, next: 0 };
        self.rings[RX].describe(&self.memory, index, buffer);
        self.rings[RX].make_available(&self.memory, index);
    }

    /// Serves the queues while another thread makes every used receive buffer available again. Returns the number of
    /// receive buffers that were used.
    pub(super) fn serve_and_recycle(&mut self) -> usize {
        let Self { memory, rings, handler, .. } = self;
        let (started, served) = (Barrier::new(2), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let recycler = scope.spawn(|| {
                let mut count = 0;
                started.wait();
                loop {
                    let last = served.load(Ordering::SeqCst);
                    while let Some((head, _)) = rings[RX].take_used(memory) {
                        rings[RX].make_available(memory, head);
                        count += 1;
                    }
                    if last {
                        return count;
                    }
                }
            });
            started.wait();
            handler.serve();
            served.store(true, Ordering::SeqCst);
            recycler.join().unwrap()
        })
    }

    pub(super) fn clear_notifications(&self) {
        for notify in &self.notify {
            // The read fails if there is no notification.
            let _ = notify.read();
        }
    }

    /// Whether the device has notified itself that it has to serve a queue again.
    pub(super) fn is_notified(&self, queue: usize) -> bool {
        self.notify[queue].read().is_ok()
    }

    /// Adds a receive buffer whose descriptor for data, the one after `index`, is empty.
    pub(super) fn add_receive_buffer_without_space(&mut self, index: u16) {
        let (write, next) = (VRING_DESC_F_WRITE, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT);
        for (index, len, flags) in [(index, 44, next), (index + 1, 0, write)] {
            let flags = u16::try_from(flags).unwrap();
            let buffer = Descriptor { addr: Self::buffer(RX, index), len, flags, next: index + 1 };
            self.rings[RX].describe(&self.memory, index, buffer);
        }
        self.rings[RX].make_available(&self.memory, index);
    }

    pub(super) fn add_event_buffer(&mut self) {
        let flags = u16::try_from(VRING_DESC_F_WRITE).unwrap();
        let buffer = Descriptor { addr: Self::buffer(EVENT, 0), len: 4, flags, next: 0 };
        self.rings[EVENT].describe(&self.memory, 0, buffer);
        self.rings[EVENT].make_available(&self.memory, 0);
    }

    pub(super) fn take_event(&mut self) -> Option<u32> {
        let (head, written) = self.rings[EVENT].take_used(&self.memory)?;
        Some(self.memory.read_obj(GuestAddress(Self::buffer(EVENT, head))).unwrap()).filter(|_| written == 4)
    }

    fn buffer(queue: usize, index: u16) -> u64 {
        0x10_0000 + (queue as u64 * u64::from(QUEUE_SIZE) + u64::from(index)) * BUFFER
    }

    /// Adds a packet to the transmit queue, in one, two or three descriptors.
    pub(super) fn send(&mut self, mut header: Header, data: &[u8]) {
        header.len = data.len().try_into().unwrap();
        let head = self.next_head();
        let addr = Self::buffer(TX, head);
        self.memory.write_obj(header, GuestAddress(addr)).unwrap();
        self.memory.write_slice(data, GuestAddress(addr + 44)).unwrap();
        let length = 44 + header.len;
        let cuts: &[u32] = match head / 4 % 3 {
            0 => &[0, length],
            1 => &[0, 44.min(length), length],
            _ => &[0, 20, 44 + header.len / 3, length],
        };
        let parts = u16::try_from(cuts.len() - 1).unwrap();
        for (cut, index) in cuts.windows(2).zip(0..parts).rev() {
            let more = if index + 1 < parts { u16::try_from(VRING_DESC_F_NEXT).unwrap() } else { 0 };
            let (addr, len) = (addr + u64::from(cut[0]), cut[1] - cut[0]);
            let descriptor = Descriptor { addr, len, flags: more, next: head + index + 1 };
            self.rings[TX].describe(&self.memory, head + index, descriptor);
        }
        self.rings[TX].make_available(&self.memory, head);
    }

    /// The first of four free descriptors.
    pub(super) fn next_head(&mut self) -> u16 {
        self.next = (self.next + 4) % QUEUE_SIZE;
        self.next
    }

    pub(super) fn add_descriptor(&mut self, head: u16, descriptor: Descriptor) {
        self.rings[TX].describe(&self.memory, head, descriptor);
        self.rings[TX].make_available(&self.memory, head);
    }

    pub(super) fn set_available_index(&mut self, queue: usize, index: u16) {
        self.rings[queue].set_avail(&self.memory, index);
    }

    pub(super) fn serve(&mut self) {
        self.handler.serve();
    }

    /// Does what the event loop does when a host descriptor becomes ready.
    pub(super) fn host_events(&mut self) {
        self.handler.dispatch().unwrap();
        self.handler.serve();
    }

    pub(super) fn backend(&self) -> &Backend {
        self.handler.backend()
    }

    pub(super) fn take_transmitted(&mut self) -> usize {
        std::iter::from_fn(|| self.rings[TX].take_used(&self.memory)).count()
    }

    /// Head and length of the next used receive buffer.
    pub(super) fn take_received(&mut self) -> Option<(u16, u32)> {
        self.rings[RX].take_used(&self.memory)
    }

    /// Takes the used receive buffers and makes them available again.
    pub(super) fn receive(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut packets = Vec::new();
        while let Some((head, written)) = self.rings[RX].take_used(&self.memory) {
            let addr = Self::buffer(RX, head);
            let header: Header = self.memory.read_obj(GuestAddress(addr)).unwrap();
            assert_eq!((header.src_cid, header.dst_cid, header.kind), (cid(HOST_CID), cid(GUEST_CID), TYPE_STREAM));
            assert_eq!(written, 44 + header.len);
            let mut data = vec![0; header.len as usize];
            self.memory.read_slice(&mut data, GuestAddress(addr + 44)).unwrap();
            packets.push((header, data));
            self.add_receive_buffer(head);
        }
        packets
    }

    /// Connects to the port of `request` and sends the secret. Returns the packets that the device has sent.
    pub(super) fn connect(&mut self, request: Header) -> Vec<(Header, Vec<u8>)> {
        let mut packets = self.exchange(Header { op: OP_REQUEST, ..request }, b"");
        let secret = self.ports.secret();
        packets.extend(self.exchange(Header { op: OP_RW, ..request }, secret.bytes()));
        packets
    }

    /// Sends one packet and returns the packets that the device has sent after it.
    pub(super) fn exchange(&mut self, header: Header, data: &[u8]) -> Vec<(Header, Vec<u8>)> {
        self.send(header, data);
        self.serve();
        self.take_transmitted();
        self.receive()
    }
}
