//! Tests of the device with valid and invalid requests.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::arch::{Memory, MemoryRegion};
use crate::machine::memory::map_pluggable;
use crate::virtio::testing::rewriting::{Chain, rewrite_while_read};
use crate::virtio::testing::{Driver, LoopThread, life_cycle};

const START: u64 = 4 << 30;
const BLOCKS: u64 = 16;
const BOOT_SIZE: u64 = 64 << 20;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

const ACK: u16 = 0;
const NACK: u16 = 1;
const ERROR: u16 = 3;

fn mapping() -> Arc<MemoryRegion> {
    map_pluggable(GuestAddress(START), BLOCKS * BLOCK_SIZE, BLOCK_SIZE).unwrap()
}

fn resizer_and_pluggable(mapping: Arc<MemoryRegion>) -> (Resizer, Pluggable) {
    pluggable(Region::new(mapping).unwrap(), BOOT_SIZE, 1 << 40, Box::new(|_, _| Ok(()))).unwrap()
}

/// An active driver, and the resizer that requests memory of it.
fn set_up_driver(event_loop: &LoopThread) -> (Driver<Mem>, Resizer) {
    let (resizer, pluggable) = resizer_and_pluggable(mapping());
    let mut driver = Driver::new(Mem::new(pluggable, event_loop.handle(), None));
    driver.set_up();
    (driver, resizer)
}

/// The bytes of a request.
fn request(kind: u16, address: u64, count: u16) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..18].copy_from_slice(&count.to_le_bytes());
    bytes
}

/// Sends a request. Returns the response's type and state.
fn send_request(driver: &mut Driver<Mem>, kind: u16, address: u64, count: u16) -> (u16, u16) {
    let answer = driver.request(0, &[&request(kind, address, count)], &[10]);
    assert_eq!(answer.len(), 10);
    (u16::from_le_bytes([answer[0], answer[1]]), u16::from_le_bytes([answer[8], answer[9]]))
}

fn request_blocks(driver: &mut Driver<Mem>, kind: u16, block: u64, count: u16) -> u16 {
    send_request(driver, kind, START + block * BLOCK_SIZE, count).0
}

fn state(driver: &mut Driver<Mem>, block: u64, count: u16) -> u16 {
    let (answer, state) = send_request(driver, STATE, START + block * BLOCK_SIZE, count);
    assert_eq!(answer, ACK);
    state
}

/// A 64-bit field of the device configuration space.
fn field(driver: &Driver<Mem>, number: u64) -> u64 {
    let half = |offset| u64::from(driver.register(0x100 + 8 * number + offset));
    half(0) | half(4) << 32
}

fn await_requested(driver: &Driver<Mem>, bytes: u64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while field(driver, 6) != bytes {
        assert!(Instant::now() < deadline, "{} bytes are requested", field(driver, 6));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Requests a machine with this many plugged blocks, and waits until the driver can read the request.
fn grow(driver: &Driver<Mem>, resizer: &Resizer, blocks: u64) {
    assert_eq!(resizer.request(BOOT_SIZE + blocks * BLOCK_SIZE).unwrap(), BOOT_SIZE + blocks * BLOCK_SIZE);
    await_requested(driver, blocks * BLOCK_SIZE);
}

#[test]
fn the_device_passes_the_life_cycle_test() {
    let event_loop = LoopThread::start();
    let resizer = RefCell::new(None);
    let make = |state: Option<MemState>| {
        let (new, pluggable) = resizer_and_pluggable(mapping());
        resizer.replace(Some(new));
        Mem::new(pluggable, event_loop.handle(), state.as_ref())
    };
    let blocks = Cell::new(0);
    life_cycle(make, |driver| {
        let resizer = resizer.borrow();
        let resizer = resizer.as_ref().unwrap();
        let plugged = blocks.replace(blocks.get() + 2);
        assert_eq!(resizer.size(), BOOT_SIZE + plugged * BLOCK_SIZE, "plugged blocks stay plugged");
        grow(driver, resizer, plugged + 2);
        assert_eq!(request_blocks(driver, PLUG, plugged, 2), ACK);
        assert_eq!(field(driver, 5), (plugged + 2) * BLOCK_SIZE);
        assert_eq!(resizer.size(), BOOT_SIZE + (plugged + 2) * BLOCK_SIZE);
        assert_eq!(resizer.changed().read().unwrap(), 1);
    });
}

#[test]
fn the_configuration_space_describes_the_region_and_the_requested_size() {
    let event_loop = LoopThread::start();
    let (driver, resizer) = set_up_driver(&event_loop);
    let (generation, length) = (driver.register(0xfc), BLOCKS * BLOCK_SIZE);
    assert_eq!(
        [0, 1, 2, 3, 4, 5, 6].map(|number| field(&driver, number)),
        [BLOCK_SIZE, 0, START, length, length, 0, 0]
    );
    grow(&driver, &resizer, 3);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !driver.interrupted() {
        assert!(Instant::now() < deadline, "the driver is not interrupted");
    }
    assert_eq!((driver.register(0x60) & 2, driver.register(0xfc)), (2, generation + 1));
}

#[test]
fn no_more_than_the_requested_size_is_plugged() {
    let event_loop = LoopThread::start();
    let (mut driver, resizer) = set_up_driver(&event_loop);
    assert_eq!(request_blocks(&mut driver, PLUG, 0, 1), NACK, "before anything was requested");
    grow(&driver, &resizer, 3);
    assert_eq!(request_blocks(&mut driver, PLUG, 0, 4), NACK);
    assert_eq!(request_blocks(&mut driver, PLUG, 5, 3), ACK);
    assert_eq!(request_blocks(&mut driver, PLUG, 0, 1), NACK);
    grow(&driver, &resizer, 1);
    assert_eq!(request_blocks(&mut driver, UNPLUG, 6, 2), ACK);
    assert_eq!(request_blocks(&mut driver, PLUG, 6, 1), NACK);
    assert_eq!(resizer.size(), BOOT_SIZE + BLOCK_SIZE);
}

#[test]
fn invalid_requests_are_errors_and_change_nothing() {
    let event_loop = LoopThread::start();
    let (mut driver, resizer) = set_up_driver(&event_loop);
    grow(&driver, &resizer, BLOCKS);
    assert_eq!(request_blocks(&mut driver, PLUG, 2, 4), ACK);
    for (kind, block, count) in [
        (PLUG, 5, 1),
        (PLUG, 0, 3),
        (PLUG, 6, 0),
        (PLUG, BLOCKS, 1),
        (PLUG, 6, u16::MAX),
        (UNPLUG, 1, 2),
        (UNPLUG, 6, 1),
        (UNPLUG, BLOCKS, 1),
        (STATE, 0, 0),
        (STATE, BLOCKS - 1, 2),
        (4, 0, 1),
        (u16::MAX, 0, 1),
    ] {
        assert_eq!(request_blocks(&mut driver, kind, block, count), ERROR, "{kind}, {block}, {count}");
    }
    for address in [0, START - BLOCK_SIZE, START + 4096, u64::MAX, u64::MAX - (BLOCK_SIZE - 1)] {
        for kind in [PLUG, UNPLUG, STATE] {
            assert_eq!(send_request(&mut driver, kind, address, 1).0, ERROR, "{kind}, {address:#x}");
        }
    }
    assert_eq!((state(&mut driver, 2, 4), state(&mut driver, 6, 10), state(&mut driver, 1, 2)), (0, 1, 2));
    assert_eq!(resizer.size(), BOOT_SIZE + 4 * BLOCK_SIZE);
    assert_eq!(request_blocks(&mut driver, UNPLUG_ALL, 0, 0), ACK);
    assert_eq!((resizer.size(), state(&mut driver, 0, 16)), (BOOT_SIZE, 1));
}

#[test]
fn the_contents_of_unplugged_blocks_are_discarded() {
    let event_loop = LoopThread::start();
    let mapping = mapping();
    let (resizer, pluggable) = resizer_and_pluggable(Arc::clone(&mapping));
    let mut driver = Driver::new(Mem::new(pluggable, event_loop.handle(), None));
    driver.set_up();
    grow(&driver, &resizer, 3);
    assert_eq!(request_blocks(&mut driver, PLUG, 0, 3), ACK);
    let places = [0, BLOCK_SIZE - 1, BLOCK_SIZE, 2 * BLOCK_SIZE - 1, 2 * BLOCK_SIZE];
    // A device that began a request before a block was unplugged has such pointers as well.
    let pointers = places.map(|place| mapping.host_address().wrapping_add(usize::try_from(place).unwrap()));
    // SAFETY: the places are within the mapping, to which nothing refers.
    let write = || pointers.iter().for_each(|pointer| unsafe { pointer.write_volatile(7) });
    // SAFETY: as above.
    let read = || pointers.map(|pointer| unsafe { pointer.read_volatile() });
    write();
    assert_eq!(request_blocks(&mut driver, UNPLUG, 1, 1), ACK);
    assert_eq!(read(), [7, 7, 0, 0, 7]);
    write();
    assert_eq!(request_blocks(&mut driver, UNPLUG, 2, 1), ACK);
    assert_eq!(read(), [7, 7, 0, 0, 0], "what was written to an unplugged block is discarded with the next one");
    assert_eq!(request_blocks(&mut driver, UNPLUG_ALL, 0, 0), ACK);
    assert_eq!(read(), [0; 5]);
}

#[test]
fn chains_that_are_not_requests_are_used_with_length_0() {
    let event_loop = LoopThread::start();
    let (mut driver, resizer) = set_up_driver(&event_loop);
    grow(&driver, &resizer, 1);
    let whole = request(PLUG, START, 1);
    assert!(driver.request(0, &[&whole[..23]], &[10]).is_empty());
    assert!(driver.request(0, &[&whole], &[9]).is_empty());
    assert!(driver.request(0, &[&whole], &[]).is_empty());
    assert!(driver.request(0, &[], &[64]).is_empty());
    let outside = driver.make_available_at(0, u64::MAX - 10, 64);
    driver.notify(0);
    assert_eq!(driver.take_used_element(0), (outside, 0));
    assert_eq!(resizer.size(), BOOT_SIZE);
    let split = driver.request(0, &[&whole[..5], &whole[5..]], &[3, 7]);
    assert_eq!(split, [0; 10], "a request may be split into any number of descriptors");
    assert_eq!(resizer.size(), BOOT_SIZE + BLOCK_SIZE);
}

#[test]
fn a_size_is_whole_blocks_between_boot_size_and_maximum() {
    let (resizer, _pluggable) = resizer_and_pluggable(mapping());
    assert_eq!(resizer.request(0).unwrap(), BOOT_SIZE);
    assert_eq!(resizer.request(BOOT_SIZE + 1).unwrap(), BOOT_SIZE + BLOCK_SIZE);
    let max = BOOT_SIZE + BLOCKS * BLOCK_SIZE;
    assert_eq!(resizer.request(max).unwrap(), max);
    let error = resizer.request(max + 1).unwrap_err().to_string();
    assert_eq!(error, "this machine can have 96 MiB at most, not 97");
    let region = Region::new(mapping()).unwrap();
    let (limited, _pluggable) = pluggable(region, BOOT_SIZE, BOOT_SIZE + BLOCK_SIZE, Box::new(|_, _| Ok(()))).unwrap();
    assert!(limited.request(BOOT_SIZE + BLOCK_SIZE).is_ok() && limited.request(BOOT_SIZE + 2 * BLOCK_SIZE).is_err());
}

/// The numbers of the blocks that vCPUs can access, and of one that KVM does not map.
#[derive(Clone, Default)]
struct Slots(Arc<Mutex<(BTreeSet<usize>, Option<usize>)>>);

impl Slots {
    fn set(&self, block: usize, plugged: bool) -> std::io::Result<()> {
        let (mapped, refused) = &mut *self.0.lock().unwrap();
        if plugged && *refused == Some(block) {
            return Err(std::io::Error::other("no slot is free"));
        }
        assert!(if plugged { mapped.insert(block) } else { mapped.remove(&block) }, "block {block} was so already");
        Ok(())
    }

    fn mapped(&self) -> Vec<usize> {
        self.0.lock().unwrap().0.iter().copied().collect()
    }
}

/// The blocks that devices can access.
fn accessible(memory: &Memory) -> Vec<usize> {
    let place = |block: usize| GuestAddress(START + block as u64 * BLOCK_SIZE);
    (0..usize::try_from(BLOCKS).unwrap()).filter(|block| memory.write_obj(1_u8, place(*block)).is_ok()).collect()
}

#[test]
fn vcpus_and_devices_access_plugged_blocks_only() {
    let event_loop = LoopThread::start();
    let (mapping, slots) = (mapping(), Slots::default());
    let memory = Memory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap().insert_region(Arc::clone(&mapping)).unwrap();
    let (region, set) = (Region::new(mapping).unwrap(), slots.clone());
    let set_block = move |block, plugged| set.set(block, plugged);
    let (resizer, pluggable) = pluggable(region, BOOT_SIZE, 1 << 40, Box::new(set_block)).unwrap();
    let mut driver = Driver::new(Mem::new(pluggable, event_loop.handle(), None));
    driver.set_up();
    let check = |blocks: &[usize]| {
        assert_eq!((slots.mapped(), accessible(&memory)), (blocks.to_vec(), blocks.to_vec()));
        assert_eq!(resizer.plugged(), blocks.len() as u64 * BLOCK_SIZE);
    };
    check(&[]);
    grow(&driver, &resizer, BLOCKS);
    check(&[]);
    assert_eq!(request_blocks(&mut driver, PLUG, 2, 4), ACK);
    check(&[2, 3, 4, 5]);
    assert_eq!(request_blocks(&mut driver, UNPLUG, 3, 2), ACK);
    check(&[2, 5]);
    slots.0.lock().unwrap().1 = Some(10);
    assert_eq!(request_blocks(&mut driver, PLUG, 8, 4), NACK, "KVM has no slot for one of them");
    check(&[2, 5]);
    assert_eq!(request_blocks(&mut driver, PLUG, 8, 2), ACK);
    check(&[2, 5, 8, 9]);
    assert_eq!(request_blocks(&mut driver, UNPLUG_ALL, 0, 0), ACK);
    check(&[]);
}

#[test]
fn a_mapping_that_is_not_whole_blocks_is_rejected() {
    let odd = map_pluggable(GuestAddress(START), BLOCK_SIZE + 4096, 4096).unwrap();
    assert!(Region::new(odd).is_err());
    assert!(Region::new(map_pluggable(GuestAddress(START + 4096), BLOCK_SIZE, 4096).unwrap()).is_err());
}

#[test]
fn chains_that_change_while_they_are_read_do_no_harm() {
    let event_loop = LoopThread::start();
    let (resizer, pluggable) = resizer_and_pluggable(mapping());
    let mut driver = Driver::new(Mem::new(pluggable, event_loop.handle(), None));
    let [plug, unplug] = [PLUG, UNPLUG].map(|kind| request(kind, START, 1));
    let chains = [
        Chain { queue: 0, readable: &[&plug], writable: &[10] },
        Chain { queue: 0, readable: &[&unplug[..10], &unplug[10..]], writable: &[4, 6] },
    ];
    let used = rewrite_while_read(&mut driver, &chains, &[0, 1, 2, 3, START, START + BLOCK_SIZE, u64::MAX], || ());
    assert!(used > 100, "{used} chains were used");
    driver.set_up();
    assert_eq!(send_request(&mut driver, UNPLUG_ALL, 0, 0).0, ACK);
    drop(resizer);
}
