//! The fuzzing target of the device: any requests of a guest, and of the sandbox.

use std::sync::Arc;

use event_manager::SubscriberOps;
use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};

use super::handler::Handler;
use super::{BLOCK_SIZE, Mem, MemState, Pluggable, Region, Resizer, pluggable};
use crate::arch::MemoryRegion;
use crate::event_loop::{EventLoop, LoopHandle};
use crate::virtio::fuzz::{Input, RawDriver};

const START: u64 = 4 << 30;
const BLOCKS: u64 = 16;
const BOOT_SIZE: u64 = 64 << 20;

/// Requests in the order of the input.
pub(crate) fn mem(data: &[u8]) {
    let mut input = Input::new(data);
    let options = input.u8();
    let mut driver = RawDriver::new(1);
    let (resizer, pluggable) = ends();
    let handler = Handler::new(driver.activation(0, options & 1 != 0), pluggable);
    let mut event_loop = EventLoop::new().expect("an epoll descriptor");
    event_loop.add_subscriber(Box::new(handler));
    while let Some(step) = input.step() {
        match step % 4 {
            0 => send_request(&mut driver, &mut input),
            1 => driver.step(&mut input),
            2 => drop(resizer.request(BOOT_SIZE + (u64::from(input.u16()) << 16))),
            _ => serve(&driver, &mut event_loop, &resizer),
        }
    }
    serve(&driver, &mut event_loop, &resizer);
}

fn ends() -> (Resizer, Pluggable) {
    let mapping = MmapRegion::new(usize::try_from(BLOCKS * BLOCK_SIZE).expect("32 MiB")).expect("address space");
    let region = GuestRegionMmap::new(mapping, GuestAddress(START)).expect("an address without overflow");
    let region = Region::new(Arc::new(MemoryRegion::pluggable(region, BLOCK_SIZE))).expect("whole blocks");
    pluggable(region, BOOT_SIZE, BOOT_SIZE + BLOCKS * BLOCK_SIZE, Box::new(|_, _| Ok(()))).expect("two eventfds")
}

/// A device for [`crate::virtio::fuzz::restore`].
pub(crate) fn device(event_loop: LoopHandle, state: Option<&MemState>) -> Mem {
    Mem::new(ends().1, event_loop, state)
}

/// Adds a request for blocks of the region, or near it.
fn send_request(driver: &mut RawDriver, input: &mut Input<'_>) {
    let [kind, block, count, wrong] = input.array();
    let mut request = [0; 24];
    request[0] = kind & 0x0f;
    let address = (START + u64::from(block) * BLOCK_SIZE).wrapping_sub(u64::from(wrong & 0x0f) << 20);
    request[8..16].copy_from_slice(&address.to_le_bytes());
    request[16] = count;
    request[17] = kind >> 4;
    driver.add_chain(0, &[&request], &[10 + u32::from(wrong >> 4)]);
}

/// Serves the queue. The guest never has more than the region.
fn serve(driver: &RawDriver, event_loop: &mut EventLoop, resizer: &Resizer) {
    driver.notify(0);
    event_loop.run_with_timeout(0).expect("the handler's events are valid");
    assert!(resizer.size() <= BOOT_SIZE + BLOCKS * BLOCK_SIZE);
    assert_eq!(resizer.plugged() % BLOCK_SIZE, 0);
}
