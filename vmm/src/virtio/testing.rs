//! The test that every device passes ([`life_cycle`]), and the raw driver for this and other tests.
//!
//! The driver does what a guest does: it writes registers through the transport, keeps rings in guest memory, notifies
//! the device and waits for its interrupts.

mod hold;
pub(crate) mod rewriting;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::{Interrupt, VirtQueue, VirtioDevice};
use super::mmio::MmioTransport;
use super::mmio::Registers;
use super::registers::RegisterPage;
use crate::arch::{Memory, MemoryRegion};
use crate::event_loop::{EventLoop, LoopHandle};

/// How long a device may take to use a buffer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The memory for a queue's rings and, after them, its buffers, in bytes.
const QUEUE_AREA: u64 = 1 << 20;
const RING_AREA: u64 = 64 << 10;

/// The address of a plugged block of 4 KiB of pluggable memory.
pub(crate) const PLUGGED: u64 = 1 << 40;

/// The address of the unplugged block of 4 KiB after it.
pub(crate) const UNPLUGGED: u64 = PLUGGED + BLOCK;

const BLOCK: u64 = 4096;

/// `memory` and the blocks at [`PLUGGED`] and [`UNPLUGGED`].
pub(crate) fn with_pluggable_blocks(memory: &Memory) -> Memory {
    let mapping = GuestRegionMmap::from_range(GuestAddress(PLUGGED), 2 * usize::try_from(BLOCK).unwrap(), None);
    let region = MemoryRegion::pluggable(mapping.unwrap(), BLOCK);
    region.set_plugged(0..1, true);
    memory.insert_region(Arc::new(region)).unwrap()
}

/// Checks that a device works and returns all its queues, that it works again after it was saved and restored into a
/// new device, and again after a reset.
///
/// `make` is the device's constructor. `work` makes the device do something and checks the result. The state in which
/// `work` leaves the queues is part of the saved state.
pub(crate) fn life_cycle<D: VirtioDevice>(
    mut make: impl FnMut(Option<D::State>) -> D,
    mut work: impl FnMut(&mut Driver<D>),
) {
    let mut driver = Driver::new(make(None));
    driver.set_up();
    work(&mut driver);

    let saved = serde_json::to_string(&driver.transport.save()).expect("a saved device is serialised");
    let state: super::state::TransportState<D::State> = serde_json::from_str(&saved).expect("and read again");
    assert_eq!(state.queues.len(), driver.notify_events.len(), "the device did not return all its queues");
    let device = serde_json::from_value(serde_json::to_value(&state.device).unwrap()).unwrap();
    let mut driver = driver.restored(make(Some(device)), &state);
    work(&mut driver);

    driver.reset();
    driver.set_up();
    work(&mut driver);
}

/// An event loop on its own thread.
pub(crate) struct LoopThread {
    handle: LoopHandle,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl LoopThread {
    /// Starts the thread.
    pub(crate) fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut event_loop = EventLoop::new().unwrap();
            sender.send(LoopHandle::new(&event_loop)).unwrap();
            while !stopped.load(Ordering::SeqCst) {
                event_loop.run_with_timeout(20).unwrap();
            }
        });
        Self { handle: receiver.recv().unwrap(), stop, thread: Some(thread) }
    }

    /// A handle to the event loop.
    pub(crate) fn handle(&self) -> LoopHandle {
        self.handle.clone()
    }
}

impl Drop for LoopThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the event loop panicked");
        }
    }
}

/// A used chain.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct UsedChain {
    /// Number of the chain's first descriptor, as [`Driver::make_available`] returned it.
    pub(crate) head: u16,
    /// What the device wrote to the chain's writable buffers, concatenated.
    pub(crate) data: Vec<u8>,
}

/// A driver and its device.
pub(crate) struct Driver<D: VirtioDevice> {
    pub(crate) transport: MmioTransport<D>,
    registers: RegisterPage,
    pub(crate) memory: Memory,
    notify_events: Vec<EventFd>,
    line: Arc<EventFd>,
    rings: Vec<Ring>,
    event_idx: bool,
}

/// The driver's side of a virtqueue.
#[derive(Default)]
struct Ring {
    size: u16,
    base: u64,
    next_descriptor: u16,
    avail_idx: u16,
    used_idx: u16,
    next_buffer: u64,
    /// Address and length of the writable buffers, by the chain's head.
    writable: std::collections::HashMap<u16, Vec<(u64, u32)>>,
}

impl Ring {
    fn avail(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    fn used(&self) -> u64 {
        (self.avail() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }
}

impl<D: VirtioDevice> Driver<D> {
    /// A driver that has not accessed the device yet.
    pub(crate) fn new(device: D) -> Self {
        let count = device.queue_sizes().len() as u64;
        let size = usize::try_from(QUEUE_AREA * (count + 1)).unwrap();
        let memory = with_pluggable_blocks(&Memory::from_ranges(&[(GuestAddress(0), size)]).unwrap());
        let (queues, notify_events) = queues(&device);
        let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let registers = RegisterPage::map(1).unwrap()[0];
        let interrupt = Interrupt::new(registers, Arc::clone(&line));
        let transport = MmioTransport::new(device, queues, memory.clone(), interrupt);
        Self { transport, registers, memory, notify_events, line, rings: Vec::new(), event_idx: false }
    }

    /// The same driver after the machine was restored.
    pub(crate) fn restored(self, device: D, state: &super::state::TransportState<D::State>) -> Self {
        let (queues, notify_events) = queues(&device);
        let registers = RegisterPage::map(1).unwrap()[0];
        let interrupt = Interrupt::new(registers, Arc::clone(&self.line));
        let transport = MmioTransport::restore(device, queues, self.memory.clone(), interrupt, state).unwrap();
        transport.resume();
        Self { transport, registers, notify_events, ..self }
    }

    /// Reads a register.
    pub(crate) fn register(&self, offset: u64) -> u32 {
        self.registers.at(offset).load(Ordering::SeqCst)
    }

    /// Writes a register.
    pub(crate) fn set_register(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// Accepts every feature, sets up every queue and sets `DRIVER_OK`.
    pub(crate) fn set_up(&mut self) {
        self.set_register(0x70, 1);
        self.set_register(0x70, 1 | 2);
        for half in [0, 1] {
            self.set_register(0x14, half);
            self.set_register(0x24, half);
            let offered = self.register(0x10);
            self.event_idx = if half == 0 { offered & (1 << VIRTIO_RING_F_EVENT_IDX) != 0 } else { self.event_idx };
            self.set_register(0x20, offered);
        }
        self.set_register(0x70, 1 | 2 | 8);
        assert_eq!(self.register(0x70), 1 | 2 | 8, "the device does not accept its own features");
        self.rings = (0..self.notify_events.len()).map(|index| self.set_up_queue(index)).collect();
        self.set_register(0x70, 1 | 2 | 8 | 4);
        assert_eq!(self.register(0x70), 1 | 2 | 8 | 4, "the device was not activated");
    }

    fn set_up_queue(&self, index: usize) -> Ring {
        let base = QUEUE_AREA * (index as u64 + 1);
        self.memory.write_slice(&vec![0; usize::try_from(RING_AREA).unwrap()], GuestAddress(base)).unwrap();
        self.set_register(0x30, u32::try_from(index).unwrap());
        assert_eq!(self.register(0x44), 0, "a queue is ready before it was set up");
        let size = u16::try_from(self.register(0x34)).unwrap().min(256);
        let ring = Ring { size, base, next_buffer: base + RING_AREA, ..Ring::default() };
        self.set_register(0x38, u32::from(size));
        for (register, address) in [(0x80, ring.base), (0x90, ring.avail()), (0xa0, ring.used())] {
            self.set_register(register, u32::try_from(address).unwrap());
            self.set_register(register + 4, 0);
        }
        self.set_register(0x44, 1);
        assert_eq!(self.register(0x44), 1);
        ring
    }

    /// Resets the device.
    pub(crate) fn reset(&mut self) {
        self.set_register(0x70, 0);
        assert_eq!(self.register(0x70), 0);
    }

    /// Adds a chain to the available ring: `readable` buffers with their contents, then `writable` buffers of these
    /// lengths in bytes. Returns the chain's head. Does not notify the device.
    pub(crate) fn make_available(&mut self, queue: usize, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let ring = &mut self.rings[queue];
        let head = ring.next_descriptor % ring.size;
        let count = readable.len() + writable.len();
        let lengths = readable.iter().map(|bytes| u32::try_from(bytes.len()).unwrap()).chain(writable.iter().copied());
        let mut buffers = Vec::new();
        for (position, length) in lengths.enumerate() {
            let address = ring.next_buffer;
            ring.next_buffer += u64::from(length);
            assert!(ring.next_buffer <= ring.base + QUEUE_AREA, "the test uses more buffers than there is memory for");
            let index = ring.next_descriptor % ring.size;
            ring.next_descriptor = ring.next_descriptor.wrapping_add(1);
            let write = if position < readable.len() { 0 } else { VRING_DESC_F_WRITE };
            let more = if position + 1 < count { VRING_DESC_F_NEXT } else { 0 };
            let next = ring.next_descriptor % ring.size;
            let descriptor = GuestAddress(ring.base + 16 * u64::from(index));
            self.memory.write_obj(address, descriptor).unwrap();
            self.memory.write_obj(length, GuestAddress(descriptor.0 + 8)).unwrap();
            self.memory.write_obj(u16::try_from(write | more).unwrap(), GuestAddress(descriptor.0 + 12)).unwrap();
            self.memory.write_obj(next, GuestAddress(descriptor.0 + 14)).unwrap();
            match readable.get(position) {
                Some(bytes) => self.memory.write_slice(bytes, GuestAddress(address)).unwrap(),
                None => buffers.push((address, length)),
            }
        }
        ring.writable.insert(head, buffers);
        self.publish(queue, head);
        head
    }

    /// Writes `head` to the available ring.
    fn publish(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let slot = ring.avail() + 4 + 2 * u64::from(ring.avail_idx % ring.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        ring.avail_idx = ring.avail_idx.wrapping_add(1);
        self.memory.store(ring.avail_idx, GuestAddress(ring.avail() + 2), Ordering::SeqCst).unwrap();
    }

    /// Makes a chain that is in the descriptor table available again and notifies the device, unless half of the queue waits for it.
    fn offer_again(&mut self, queue: usize, head: u16) {
        let ring = &self.rings[queue];
        let used: u16 = self.memory.load(GuestAddress(ring.used() + 2), Ordering::SeqCst).unwrap();
        if ring.avail_idx.wrapping_sub(used) < ring.size / 2 {
            self.publish(queue, head);
            self.notify(queue);
        }
    }

    /// How many chains of a queue the device has used since its activation.
    fn used_so_far(&self, queue: usize) -> u64 {
        let index: u16 = self.memory.load(GuestAddress(self.rings[queue].used() + 2), Ordering::SeqCst).unwrap();
        index.into()
    }

    /// Adds a chain of one writable buffer at any `address`, even outside guest memory.
    pub(crate) fn make_available_at(&mut self, queue: usize, address: u64, length: u32) -> u16 {
        let head = self.make_available(queue, &[], &[length]);
        self.move_buffer(queue, head, 0, address);
        head
    }

    /// Changes the address of the buffer at `position` in a chain, before the device is notified of the chain.
    pub(crate) fn move_buffer(&mut self, queue: usize, head: u16, position: u16, address: u64) {
        let ring = &self.rings[queue];
        let descriptor = ring.base + 16 * u64::from((head + position) % ring.size);
        self.memory.write_obj(address, GuestAddress(descriptor)).unwrap();
    }

    /// Notifies the device of a queue (`QueueNotify`).
    pub(crate) fn notify(&self, queue: usize) {
        self.notify_events[queue].write(1).unwrap();
    }

    /// The next used chain. Waits for an interrupt while there is none.
    pub(crate) fn wait_used(&mut self, queue: usize) -> UsedChain {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            self.set_used_event(queue);
            if let Some(used) = self.take_used(queue) {
                return used;
            }
            assert!(Instant::now() < deadline, "the device did not use a buffer of queue {queue}");
            if self.line.read().is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let pending = self.register(0x60);
            self.set_register(0x64, pending);
        }
    }

    /// Head and length of the next used element, without a look at the chain's buffers. Waits for it.
    pub(crate) fn take_used_element(&mut self, queue: usize) -> (u16, u32) {
        let deadline = Instant::now() + TIMEOUT;
        let ring = &mut self.rings[queue];
        while self.memory.load::<u16>(GuestAddress(ring.used() + 2), Ordering::SeqCst).unwrap() == ring.used_idx {
            assert!(Instant::now() < deadline, "the device did not use a buffer of queue {queue}");
            std::thread::sleep(Duration::from_millis(1));
        }
        let element = ring.used() + 4 + 8 * u64::from(ring.used_idx % ring.size);
        let entry: [u32; 2] = self.memory.read_obj(GuestAddress(element)).unwrap();
        ring.used_idx = ring.used_idx.wrapping_add(1);
        let head = u16::try_from(entry[0]).unwrap();
        ring.writable.remove(&head);
        (head, entry[1])
    }

    /// Adds a chain, notifies the device and waits until the chain is used. Returns what the device wrote.
    pub(crate) fn request(&mut self, queue: usize, readable: &[&[u8]], writable: &[u32]) -> Vec<u8> {
        let head = self.make_available(queue, readable, writable);
        self.notify(queue);
        let used = self.wait_used(queue);
        assert_eq!(used.head, head, "the device used another chain first");
        used.data
    }

    /// Whether the device interrupted since the last call.
    pub(crate) fn interrupted(&self) -> bool {
        self.line.read().is_ok()
    }

    /// With `VIRTIO_F_EVENT_IDX`, requests a notification of the next used buffer (`used_event`).
    fn set_used_event(&self, queue: usize) {
        if self.event_idx {
            let ring = &self.rings[queue];
            let used_event = ring.avail() + 4 + 2 * u64::from(ring.size);
            self.memory.store(ring.used_idx, GuestAddress(used_event), Ordering::SeqCst).unwrap();
        }
    }

    /// The next used chain, if there is one now.
    pub(crate) fn take_used(&mut self, queue: usize) -> Option<UsedChain> {
        let ring = &mut self.rings[queue];
        let device_idx: u16 = self.memory.load(GuestAddress(ring.used() + 2), Ordering::SeqCst).unwrap();
        if device_idx == ring.used_idx {
            return None;
        }
        let element = ring.used() + 4 + 8 * u64::from(ring.used_idx % ring.size);
        let head: u32 = self.memory.read_obj(GuestAddress(element)).unwrap();
        let mut left: u32 = self.memory.read_obj(GuestAddress(element + 4)).unwrap();
        ring.used_idx = ring.used_idx.wrapping_add(1);
        let head = u16::try_from(head).unwrap();
        let mut data = Vec::new();
        for (address, length) in ring.writable.remove(&head).expect("the device used a chain it was not offered") {
            let mut part = vec![0; usize::try_from(length.min(left)).unwrap()];
            self.memory.read_slice(&mut part, GuestAddress(address)).unwrap();
            left -= u32::try_from(part.len()).unwrap();
            data.extend(part);
        }
        assert_eq!(left, 0, "the device claims to have written more than the buffers hold");
        Some(UsedChain { head, data })
    }
}

/// Queues for `device`, and the write ends of their notifications.
fn queues<D: VirtioDevice>(device: &D) -> (Vec<VirtQueue>, Vec<EventFd>) {
    let queue = |size: &u16| {
        let notify = EventFd::new(EFD_NONBLOCK).unwrap();
        let ring = notify.try_clone().unwrap();
        (VirtQueue::new(*size, notify), ring)
    };
    device.queue_sizes().iter().map(queue).unzip()
}
