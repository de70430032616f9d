//! The targets that run with every device.

use std::sync::OnceLock;
use std::thread;

use crate::event_loop::{EventLoop, LoopHandle};
use crate::mem::{self, MemState};
use crate::net::{self, Net, NetState};
use crate::virtio::device::{ActivateError, Activation, VirtQueue, VirtioDevice, next_chain};
use crate::virtio::fuzz::{Input, drive_registers, restore};
use crate::virtio::rng::{Rng, RngState};
use crate::vsock::{Ports, Vsock, VsockState};

/// Ends the process when its thread panics, which nobody would notice otherwise.
struct AbortAtPanic;

impl Drop for AbortAtPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

/// A handle to an event loop on a thread of its own, which serves the devices of all runs.
fn event_loop() -> LoopHandle {
    static HANDLE: OnceLock<LoopHandle> = OnceLock::new();
    let start = || {
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let _end = AbortAtPanic;
            let mut event_loop = EventLoop::new().expect("an epoll descriptor");
            sender.send(LoopHandle::new(&event_loop)).expect("the caller waits");
            while event_loop.run().is_ok() {}
        });
        receiver.recv().expect("the thread has started")
    };
    HANDLE.get_or_init(start).clone()
}

fn rng(state: Option<RngState>) -> Rng {
    Rng::new(event_loop(), state)
}

fn vsock(state: Option<VsockState>) -> Vsock {
    Vsock::new(Ports::new().expect("an eventfd"), event_loop(), state).expect("an epoll descriptor")
}

fn net(state: Option<NetState>) -> Net {
    Net::new(net::slot(0).expect("an eventfd").1, event_loop(), state)
}

fn mem(state: Option<&MemState>) -> mem::Mem {
    mem::fuzz::device(event_loop(), state)
}

/// Register writes of a driver. The first byte of the input selects the device: most inputs have one without threads.
pub fn mmio(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() {
        0xfc => drive_registers(rng(None), &mut input),
        0xfd => drive_registers(vsock(None), &mut input),
        0xfe => drive_registers(net(None), &mut input),
        0xff => drive_registers(mem(None), &mut input),
        _ => drive_registers(Owner::default(), &mut input),
    }
}

/// A saved state of a device and its transport. The first byte of the input selects the device, the rest is the state as JSON.
pub fn device_states(data: &[u8]) {
    restores(data);
}

/// Returns whether the state is one of the device.
fn restores(data: &[u8]) -> bool {
    let Some((kind, state)) = data.split_first() else { return false };
    match kind % 5 {
        0 => restore(state, rng),
        1 => restore(state, vsock),
        2 => restore(state, net),
        3 => restore(state, |state| mem(state.as_ref())),
        _ => restore(state, |_| Owner::default()),
    }
}

/// A device that checks what the transport promises, and serves its queues while it is activated.
#[derive(Default)]
struct Owner {
    queues: Vec<VirtQueue>,
    is_active: bool,
}

const QUEUE_SIZES: [u16; 3] = [16, 128, 8];

impl VirtioDevice for Owner {
    type State = ();

    fn device_type(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1 | 1 << 29 | 1
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, queues, features, .. } = activation;
        assert!(!self.is_active && queues.len() == QUEUE_SIZES.len());
        assert_eq!(features & !self.features(), 0, "features that were not offered");
        self.is_active = true;
        self.queues = queues;
        for VirtQueue { queue, .. } in self.queues.iter_mut().filter(|queue| virtio_queue::QueueT::ready(&queue.queue))
        {
            for _ in 0..16 {
                let Some(chain) = next_chain(queue, &memory) else { break };
                let head = chain.head_index();
                let length = chain.filter(|descriptor| descriptor.is_write_only()).count();
                // The used ring is guest memory, so this fails only for a head that is no descriptor.
                let _ = virtio_queue::QueueT::add_used(queue, &memory, head, u32::try_from(length).expect("few"));
            }
        }
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<VirtQueue> {
        self.is_active = false;
        std::mem::take(&mut self.queues)
    }

    fn save(&self) {}
}

#[cfg(test)]
mod tests {
    use agent::fuzz::committed;

    use super::*;

    #[test]
    fn committed_states_are_those_of_the_devices() {
        for (name, expected) in
            [("rng", true), ("vsock", true), ("net", true), ("mem", true), ("owner", true), ("invalid", false)]
        {
            assert_eq!(restores(&committed("device_states", name)), expected, "{name}");
        }
    }
}
