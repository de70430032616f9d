//! Every short sequence of what a driver and the machine can do with a device, whose queues a thread serves. After each step exactly one
//! side has the queues: the thread while the device is active, and the transport otherwise.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use vm_memory::Bytes;

use super::*;
use crate::virtio::device::next_chain;
use crate::virtio::state::TransportState;
use crate::virtio::testing::Driver;

/// What all threads of a test's devices have in common.
#[derive(Default)]
struct Shared {
    /// The number of threads that have queues.
    owners: AtomicUsize,
    /// Activations fail.
    refuse: AtomicBool,
}

/// A device with a thread, which writes a byte to each buffer.
struct Threaded {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<VirtQueue>>>,
}

impl Threaded {
    fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), stop: Arc::default(), thread: None }
    }
}

fn serve(mut activation: Activation, shared: &Shared, stop: &AtomicBool) -> Vec<VirtQueue> {
    assert_eq!(shared.owners.fetch_add(1, Ordering::SeqCst), 0, "another thread has the queues");
    while !stop.load(Ordering::SeqCst) {
        for VirtQueue { queue, .. } in &mut activation.queues {
            let Some(chain) = next_chain(queue, &activation.memory) else { continue };
            let head = chain.head_index();
            for descriptor in chain {
                activation.memory.write_obj(1_u8, descriptor.addr()).unwrap();
            }
            queue.add_used(&activation.memory, head, 1).unwrap();
            activation.interrupt.notify_used_buffers().unwrap();
        }
        std::thread::yield_now();
    }
    shared.owners.fetch_sub(1, Ordering::SeqCst);
    activation.queues
}

impl VirtioDevice for Threaded {
    type State = ();

    fn device_type(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8, 16]
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if self.shared.refuse.load(Ordering::SeqCst) {
            return Err(ActivateError::QueueDisabled(0));
        }
        assert!(self.thread.is_none(), "activated twice");
        self.stop.store(false, Ordering::SeqCst);
        let (shared, stop) = (Arc::clone(&self.shared), Arc::clone(&self.stop));
        self.thread = Some(std::thread::spawn(move || serve(activation, &shared, &stop)));
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<VirtQueue> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().map_or_else(Vec::new, |thread| thread.join().unwrap())
    }

    fn save(&self) {}
}

impl Drop for Threaded {
    fn drop(&mut self) {
        self.deactivate();
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Reset,
    /// From a reset to `DRIVER_OK`.
    SetUp,
    /// `DRIVER_OK` again, and other addresses of the queues.
    Disturb,
    /// A request on each queue.
    Use,
    /// The machine is saved and restored.
    Restore,
}

const STEPS: [Step; 5] = [Step::Reset, Step::SetUp, Step::Disturb, Step::Use, Step::Restore];

struct Machine {
    driver: Driver<Threaded>,
    shared: Arc<Shared>,
    is_active: bool,
}

impl Machine {
    fn new() -> Self {
        let shared = Arc::default();
        Self { driver: Driver::new(Threaded::new(&shared)), shared, is_active: false }
    }

    fn run(mut self, step: Step) -> Self {
        match step {
            Step::Reset => self.driver.reset(),
            Step::SetUp => {
                self.driver.reset();
                self.driver.set_up();
            }
            Step::Disturb => self.disturb(),
            Step::Use => self.use_queues(),
            Step::Restore => return self.restore(),
        }
        self.is_active = matches!(step, Step::SetUp) || self.is_active && !matches!(step, Step::Reset);
        self
    }

    fn disturb(&mut self) {
        for index in [0, 1] {
            self.driver.set_register(register::QUEUE_SEL, index);
            if self.is_active {
                self.driver.set_register(register::QUEUE_DESC_LOW, 0xffff_0000);
                self.driver.set_register(register::QUEUE_READY, 0);
            }
        }
        self.driver.set_register(register::STATUS, 1 | 2 | 8 | 4);
    }

    fn use_queues(&mut self) {
        if self.is_active {
            assert_eq!([0, 1].map(|queue| self.driver.request(queue, &[], &[1])), [[1], [1]]);
        }
    }

    fn restore(self) -> Self {
        let state = serde_json::to_string(&self.driver.transport.save()).unwrap();
        assert_eq!(self.shared.owners.load(Ordering::SeqCst), 0, "a saved device accesses the guest's memory");
        let state: TransportState<()> = serde_json::from_str(&state).unwrap();
        Self { driver: self.driver.restored(Threaded::new(&self.shared), &state), ..self }
    }

    /// Checks which side has the queues.
    fn check(&self) {
        let inner = self.driver.transport.lock();
        assert_eq!(inner.device.thread.is_some(), self.is_active);
        assert_eq!(inner.queues.len(), if self.is_active { 0 } else { 2 });
        drop(inner);
        if !self.is_active {
            assert_eq!(self.shared.owners.load(Ordering::SeqCst), 0, "an inactive device has queues");
        }
    }
}

#[test]
fn one_side_has_the_queues_after_every_sequence_of_steps() {
    const LENGTH: u32 = 4;
    for sequence in 0..STEPS.len().pow(LENGTH) {
        let steps = (0..LENGTH).map(|position| STEPS[sequence / STEPS.len().pow(position) % STEPS.len()]);
        let mut machine = Machine::new();
        for step in steps {
            machine = machine.run(step);
            machine.check();
        }
    }
}

#[test]
fn after_a_refused_activation_a_reset_makes_the_device_usable() {
    let mut machine = Machine::new();
    machine.shared.refuse.store(true, Ordering::SeqCst);
    let set_up = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| machine.driver.set_up()));
    assert!(set_up.is_err(), "the driver sees that the device was not activated");
    assert_ne!(machine.driver.register(register::STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    machine.shared.refuse.store(false, Ordering::SeqCst);
    let machine = machine.run(Step::SetUp).run(Step::Use);
    machine.check();
}
