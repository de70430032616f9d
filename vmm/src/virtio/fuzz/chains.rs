//! Chains of any descriptors, as every device reads them.

use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT, Reader, Writer};

use super::{Input, RawDriver};
use crate::arch::Memory;
use crate::virtio::device::next_chain;

/// A reader of chains: a device's conversion of a chain to guest memory.
pub(crate) type Convert = for<'m> fn(&DescriptorChain<&'m Memory>, &'m Memory);

/// Makes queues of any content, and converts each chain as the devices do. At most a queue of chains is taken at a time, as in a device.
pub(crate) fn chains(data: &[u8], converts: &[Convert]) {
    let mut input = Input::new(data);
    let mut driver = RawDriver::new(1);
    let event_idx = input.u8() & 1 != 0;
    let mut queue = driver.activation(0, event_idx).queues.remove(0).queue;
    while let Some(step) = input.step() {
        if step % 4 != 0 {
            driver.step(&mut input);
            continue;
        }
        for _ in 0..queue.size() {
            let Some(chain) = next_chain(&mut queue, &driver.memory) else { break };
            let head = chain.head_index();
            converts.iter().for_each(|convert| convert(&chain, &driver.memory));
            lengths_of_reader_and_writer(&chain, &driver.memory);
            if step & 0x40 != 0 {
                queue.go_to_previous_position();
            } else {
                let _ = queue.add_used(&driver.memory, head, 0);
            }
        }
    }
}

/// A reader and a writer of a chain together have at most what its descriptors have.
fn lengths_of_reader_and_writer(chain: &DescriptorChain<&Memory>, memory: &Memory) {
    let total: u64 = chain.clone().map(|descriptor| u64::from(descriptor.len())).sum();
    let readable = Reader::new(memory, chain.clone()).map_or(0, |reader| reader.available_bytes());
    let writable = Writer::new(memory, chain.clone()).map_or(0, |writer| writer.available_bytes());
    assert!(readable as u64 + writable as u64 <= total, "{readable} and {writable} bytes of {total}");
}
