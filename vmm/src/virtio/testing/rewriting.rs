//! The test of a driver that rewrites rings, descriptors and buffers while the device reads them, and resets the device at any time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{BLOCK, Driver, PLUGGED, RING_AREA, UNPLUGGED};
use crate::arch::Memory;
use crate::virtio::device::VirtioDevice;

/// How long a device is tested.
const DURATION: Duration = Duration::from_millis(1500);

/// How often the chains of one activation are made available.
const ROUNDS: usize = 40;

/// The content of the memory that the device must not write.
const CANARY: u8 = 0xa5;

/// A chain as the driver writes it first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain<'a> {
    pub(crate) queue: usize,
    pub(crate) readable: &'a [&'a [u8]],
    pub(crate) writable: &'a [u32],
}

/// A deterministic source of random numbers (xorshift).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_of(&mut self, values: &[u64]) -> u64 {
        values[usize::try_from(self.below(values.len() as u64)).expect("an index")]
    }
}

/// The part of a queue's memory that is rewritten.
#[derive(Clone, Copy)]
struct Target {
    table: u64,
    avail: u64,
    descriptors: u64,
    buffers: u64,
    buffer_bytes: u64,
}

/// Makes `chains` available again and again while another thread rewrites their descriptors, the ring and the first bytes of their
/// buffers. Valid values alternate with invalid ones, so that a check is overtaken by a change after it. `words` are valid values for
/// buffers. Between activations, with requests in flight, the device is reset. `meanwhile` is called in each round.
///
/// The device must not write unplugged memory, must not panic, and must accept every reset. Returns how many chains it has used.
pub(crate) fn rewrite_while_read<D: VirtioDevice>(
    driver: &mut Driver<D>,
    chains: &[Chain<'_>],
    words: &[u64],
    mut meanwhile: impl FnMut(),
) -> u64 {
    set_canary(&driver.memory);
    driver.set_up();
    let memory = driver.memory.clone();
    let (targets, mut used) = (write_chains(driver, chains).1, 0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| rewrite(&memory, &targets, words, &done));
        let end = Instant::now() + DURATION;
        while Instant::now() < end {
            driver.reset();
            driver.set_up();
            let heads = write_chains(driver, chains).0;
            for _ in 0..ROUNDS {
                heads.iter().for_each(|(queue, head)| driver.offer_again(*queue, *head));
                meanwhile();
                std::thread::yield_now();
            }
            used += (0..driver.rings.len()).map(|queue| driver.used_so_far(queue)).sum::<u64>();
            assert_canary(&memory);
        }
        done.store(true, Ordering::SeqCst);
    });
    driver.reset();
    assert_canary(&memory);
    used
}

/// Writes the chains. Returns the queue and head of each, and what is to be rewritten.
fn write_chains<D: VirtioDevice>(driver: &mut Driver<D>, chains: &[Chain<'_>]) -> (Vec<(usize, u16)>, Vec<Target>) {
    let write = |chain: &Chain<'_>| (chain.queue, driver.make_available(chain.queue, chain.readable, chain.writable));
    let heads: Vec<_> = chains.iter().map(write).collect();
    let target = |queue: &usize| {
        let ring = &driver.rings[*queue];
        Target {
            table: ring.base,
            avail: ring.avail(),
            descriptors: u64::from(ring.next_descriptor),
            buffers: ring.base + RING_AREA,
            buffer_bytes: (ring.next_buffer - ring.base - RING_AREA).min(512),
        }
    };
    let mut queues: Vec<_> = chains.iter().map(|chain| chain.queue).collect();
    queues.dedup();
    (heads, queues.iter().map(target).collect())
}

fn rewrite(memory: &Memory, targets: &[Target], words: &[u64], done: &AtomicBool) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    while !done.load(Ordering::Relaxed) {
        let target = targets[usize::try_from(random.below(targets.len() as u64)).expect("an index")];
        match random.below(8) {
            0..5 => rewrite_descriptor(memory, target, &mut random),
            5 => {
                let head = random.one_of(&[0, 1, random.0 % target.descriptors, 0xffff]);
                let slot = target.avail + 4 + 2 * random.below(64);
                memory.write_obj(u16::try_from(head & 0xffff).expect("16 bits"), GuestAddress(slot)).expect("a ring");
            }
            _ if target.buffer_bytes >= 8 => {
                let word = if random.below(4) == 0 { random.next() } else { random.one_of(words) };
                let place = random.below(target.buffer_bytes / 4) * 4;
                memory.write_obj(word, GuestAddress(target.buffers + place)).expect("a buffer");
            }
            _ => {}
        }
    }
}

/// Changes one field of a descriptor, and half of the time changes it back at once.
fn rewrite_descriptor(memory: &Memory, target: Target, random: &mut Random) {
    let descriptor = target.table + 16 * random.below(target.descriptors);
    let restores = random.below(2) == 0;
    match random.below(4) {
        0 => {
            let address =
                [PLUGGED, UNPLUGGED, UNPLUGGED - 8, UNPLUGGED + BLOCK - 8, u64::MAX - 8, 1 << 50, target.avail];
            swap(memory, descriptor, random.one_of(&address), restores);
        }
        1 => {
            let length = random.one_of(&[0, 1, 16, 4096, 1 << 20, u64::from(u32::MAX)]);
            swap(memory, descriptor + 8, u32::try_from(length).expect("32 bits"), restores);
        }
        2 => {
            let flags = random.one_of(&[0, 1, 2, 3, 4, 5, 6, 7, 0xffff]);
            swap(memory, descriptor + 12, u16::try_from(flags).expect("16 bits"), restores);
        }
        _ => {
            let next = random.one_of(&[0, 1, 2, 3, 255, 256, 0xffff]);
            swap(memory, descriptor + 14, u16::try_from(next).expect("16 bits"), restores);
        }
    }
}

fn swap<T: vm_memory::ByteValued>(memory: &Memory, address: u64, value: T, restores: bool) {
    let address = GuestAddress(address);
    let before: T = memory.read_obj(address).expect("a descriptor");
    memory.write_obj(value, address).expect("a descriptor");
    if restores {
        memory.write_obj(before, address).expect("a descriptor");
    }
}

/// The address in this process of the unplugged block, which devices cannot reach through [`Memory`].
fn unplugged(memory: &Memory) -> *mut u8 {
    let region = memory.find_region(GuestAddress(PLUGGED)).expect("pluggable memory");
    region.host_address().wrapping_add(usize::try_from(BLOCK).expect("a block"))
}

fn set_canary(memory: &Memory) {
    // SAFETY: the mapping has a second block of this size, and lives as long as `memory`. No device accesses it.
    unsafe { unplugged(memory).write_bytes(CANARY, usize::try_from(BLOCK).expect("a block")) }
}

fn assert_canary(memory: &Memory) {
    let block = unplugged(memory);
    for offset in 0..usize::try_from(BLOCK).expect("a block") {
        // SAFETY: as above. The read is volatile because a fault of the device could change the block meanwhile.
        let byte = unsafe { block.wrapping_add(offset).read_volatile() };
        assert_eq!(byte, CANARY, "byte {offset} of unplugged memory was written");
    }
}
