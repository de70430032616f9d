//! The transport against a raw driver.

use super::*;
use crate::virtio::testing::Driver;

/// A device that only counts how often it was activated.
#[derive(Default)]
struct Idle {
    queues: Vec<VirtQueue>,
    activations: u32,
    refuse: bool,
}

impl VirtioDevice for Idle {
    type State = u32;

    fn device_type(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_EVENT_IDX) | 1
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8, 16]
    }

    fn config(&self) -> Vec<u8> {
        vec![0, 0, 0, 0, 4, 4, 4, 4]
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if self.refuse {
            return Err(ActivateError::QueueDisabled(1));
        }
        assert!(activation.queues.iter().all(|queue| queue.queue.event_idx_enabled()));
        self.queues = activation.queues;
        self.activations += 1;
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<VirtQueue> {
        std::mem::take(&mut self.queues)
    }

    fn save(&self) -> u32 {
        self.activations
    }
}

const READY: u32 = 1 | 2 | 8;

fn driver() -> Driver<Idle> {
    Driver::new(Idle::default())
}

fn activations(driver: &Driver<Idle>) -> u32 {
    driver.transport.lock().device.activations
}

#[test]
fn the_device_says_what_it_is() {
    let driver = driver();
    assert_eq!(driver.register(register::MAGIC), 0x7472_6976);
    assert_eq!(driver.register(register::VERSION), 2);
    assert_eq!(driver.register(register::DEVICE_ID), 42);
    assert_eq!(driver.register(register::SHM_LEN_LOW), u32::MAX);
    assert_eq!(driver.register(register::CONFIG + 4), 0x0404_0404);
    let sizes = [8, 16, 0].map(|size| size);
    for (index, size) in (0..).zip(sizes) {
        driver.set_register(register::QUEUE_SEL, index);
        assert_eq!(driver.register(register::QUEUE_NUM_MAX), size);
    }
}

#[test]
fn features_are_accepted_only_if_offered_and_modern() {
    for (low, high, accepted) in [(1, 1, true), (0, 1, true), (1, 0, false), (2, 1, false), (1, 3, false)] {
        let driver = driver();
        driver.set_register(register::STATUS, 1 | 2);
        for (half, features) in [(0, low), (1, high)] {
            driver.set_register(register::DRIVER_FEATURES_SEL, half);
            driver.set_register(register::DRIVER_FEATURES, features);
        }
        driver.set_register(register::STATUS, READY);
        assert_eq!(driver.register(register::STATUS) == READY, accepted, "{low:#x} {high:#x}");
    }
}

#[test]
fn steps_cannot_be_skipped() {
    let driver = driver();
    driver.set_register(register::STATUS, 4);
    assert_eq!(driver.register(register::STATUS), 0);
    driver.set_register(register::STATUS, 1 | 2 | 4);
    assert_eq!(driver.register(register::STATUS), 1 | 2);
    assert_eq!(activations(&driver), 0);
}

#[test]
fn queues_and_features_stay_as_they_are_while_the_device_works() {
    let mut driver = driver();
    driver.set_up();
    let before = driver.transport.lock().device.queues[1].queue.state();
    driver.set_register(register::QUEUE_SEL, 1);
    for offset in [register::QUEUE_NUM, register::QUEUE_READY, register::QUEUE_DESC_LOW, register::QUEUE_DRIVER_LOW] {
        driver.set_register(offset, 0x1000);
    }
    driver.set_register(register::DRIVER_FEATURES, 0);
    driver.set_register(register::STATUS, READY | 4);
    assert_eq!(driver.transport.lock().device.queues[1].queue.state(), before);
    assert_eq!(driver.register(register::QUEUE_READY), 1);
    assert_eq!(activations(&driver), 1, "DRIVER_OK twice activates once");
}

#[test]
fn a_reset_gives_the_queues_back_to_the_driver() {
    let mut driver = driver();
    driver.set_up();
    driver.notify(1);
    driver.reset();
    assert_eq!(driver.register(register::QUEUE_READY), 0);
    assert!(driver.transport.lock().queues[1].notify.read().is_err(), "an old notification survived the reset");
    driver.set_up();
    assert_eq!(activations(&driver), 2);
}

#[test]
fn a_queue_outside_memory_breaks_the_device_until_reset() {
    let mut driver = driver();
    driver.set_up();
    driver.reset();
    driver.set_register(register::STATUS, 1);
    driver.set_register(register::STATUS, 1 | 2);
    driver.set_register(register::DRIVER_FEATURES_SEL, 1);
    driver.set_register(register::DRIVER_FEATURES, 1);
    driver.set_register(register::STATUS, READY);
    driver.set_register(register::QUEUE_DESC_HIGH, 0xffff_ffff);
    driver.set_register(register::QUEUE_READY, 1);
    driver.set_register(register::STATUS, READY | 4);
    assert_eq!(driver.register(register::STATUS), READY | 4 | 0x40);
    assert_eq!(driver.register(register::INTERRUPT_STATUS), 3, "it says so with a configuration change");
    assert!(driver.interrupted());
    driver.reset();
    driver.set_up();
    assert_eq!(activations(&driver), 2);
}

#[test]
fn a_device_that_cannot_work_needs_a_reset() {
    let driver = Driver::new(Idle { refuse: true, ..Idle::default() });
    driver.set_register(register::STATUS, 1 | 2);
    driver.set_register(register::DRIVER_FEATURES_SEL, 1);
    driver.set_register(register::DRIVER_FEATURES, 1);
    driver.set_register(register::STATUS, READY);
    driver.set_register(register::STATUS, READY | 4);
    assert_eq!(driver.register(register::STATUS) & 0x40, 0x40);
}

#[test]
fn used_buffers_are_always_told_and_changes_until_acknowledged() {
    let driver = driver();
    let interrupt = &driver.transport.interrupt;
    interrupt.notify_used_buffers().unwrap();
    assert!(driver.interrupted());
    driver.set_register(register::INTERRUPT_ACK, 1);
    assert_eq!(driver.register(register::INTERRUPT_STATUS), 1);
    interrupt.notify_config_change(&[9]).unwrap();
    assert!(driver.interrupted());
    assert_eq!(driver.register(register::INTERRUPT_STATUS), 3);
    assert_eq!((driver.register(register::CONFIG), driver.register(register::CONFIG + 4)), (9, 0));
    assert_eq!(driver.register(register::CONFIG_GENERATION), 1);
    driver.set_register(register::INTERRUPT_ACK, 3);
    assert_eq!(driver.register(register::INTERRUPT_STATUS), 1);
}

#[test]
fn writes_of_other_widths_do_nothing() {
    let driver = driver();
    driver.transport.write(register::STATUS, &[1, 0]);
    assert_eq!(driver.register(register::STATUS), 0);
}

#[test]
fn a_saved_device_goes_on_where_it_was() {
    crate::virtio::testing::life_cycle(
        |state| Idle { activations: state.unwrap_or(0), ..Idle::default() },
        |driver| assert!(activations(driver) > 0),
    );
}

#[test]
fn state_of_another_device_is_refused() {
    let mut driver = driver();
    driver.set_up();
    let state = driver.transport.save();
    let interrupt = driver.transport.interrupt.clone();
    let restored = MmioTransport::restore(Idle::default(), Vec::new(), driver.memory.clone(), interrupt, &state);
    assert!(matches!(restored.err(), Some(RestoreError::QueueCount { saved: 2, device: 0 })));
}
