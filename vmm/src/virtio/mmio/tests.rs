//! Tests of the transport with a raw driver.

use super::*;
use crate::virtio::testing::Driver;

/// A device that only counts its activations.
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
fn identification_registers_describe_the_device() {
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
fn features_ok_needs_offered_features_and_version_1() {
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
fn status_bits_cannot_be_set_out_of_order() {
    let driver = driver();
    driver.set_register(register::STATUS, 4);
    assert_eq!(driver.register(register::STATUS), 0);
    driver.set_register(register::STATUS, 1 | 2 | 4);
    assert_eq!(driver.register(register::STATUS), 1 | 2);
    assert_eq!(activations(&driver), 0);
}

#[test]
fn queue_and_feature_registers_do_not_change_while_the_device_is_active() {
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
    assert_eq!(activations(&driver), 1, "a second DRIVER_OK does not activate again");
}

#[test]
fn after_a_reset_the_driver_can_set_up_the_queues_again() {
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
fn a_queue_outside_guest_memory_sets_device_needs_reset() {
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
    assert_eq!(driver.register(register::INTERRUPT_STATUS), 3, "the interrupt reports a configuration change");
    assert!(driver.interrupted());
    driver.reset();
    driver.set_up();
    assert_eq!(activations(&driver), 2);
}

#[test]
fn a_failed_activation_sets_device_needs_reset() {
    let driver = Driver::new(Idle { refuse: true, ..Idle::default() });
    driver.set_register(register::STATUS, 1 | 2);
    driver.set_register(register::DRIVER_FEATURES_SEL, 1);
    driver.set_register(register::DRIVER_FEATURES, 1);
    driver.set_register(register::STATUS, READY);
    driver.set_register(register::STATUS, READY | 4);
    assert_eq!(driver.register(register::STATUS) & 0x40, 0x40);
}

#[test]
fn used_buffer_status_is_always_set_and_config_change_until_acknowledged() {
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
fn writes_that_are_not_32_bits_wide_are_ignored() {
    let driver = driver();
    driver.transport.write(register::STATUS, &[1, 0]);
    assert_eq!(driver.register(register::STATUS), 0);
}

#[test]
fn a_device_passes_the_life_cycle_test() {
    crate::virtio::testing::life_cycle(
        |state| Idle { activations: state.unwrap_or(0), ..Idle::default() },
        |driver| assert!(activations(driver) > 0),
    );
}

#[test]
fn state_with_another_number_of_queues_is_rejected() {
    let mut driver = driver();
    driver.set_up();
    let state = driver.transport.save();
    let interrupt = driver.transport.interrupt.clone();
    let restored = MmioTransport::restore(Idle::default(), Vec::new(), driver.memory.clone(), interrupt, &state);
    assert!(matches!(restored.err(), Some(RestoreError::QueueCount { saved: 2, device: 0 })));
}
