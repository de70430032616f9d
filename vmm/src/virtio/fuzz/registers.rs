//! The virtio-mmio transport with a device behind it: any writes of registers, and any saved states.

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK};

use super::driver::rings;
use super::{Input, RawDriver, driver};
use crate::virtio::device::VirtioDevice;
use crate::virtio::mmio::{MmioTransport, Registers};
use crate::virtio::registers::{RegisterPage, register};
use crate::virtio::state::TransportState;

/// What a driver writes before a device works: acknowledge, driver, features accepted, driver ready.
const STATUS_STEPS: [u32; 4] = [1, 1 | 2, 1 | 2 | 8, 1 | 2 | 8 | 4];

/// The registers and the driver of one device.
struct Machine<D> {
    driver: RawDriver,
    transport: MmioTransport<D>,
    registers: RegisterPage,
}

/// Writes registers of `device` and serves its queues as the input says.
pub(crate) fn drive_registers<D: VirtioDevice>(device: D, input: &mut Input<'_>) {
    let driver = RawDriver::new(device.queue_sizes().len());
    let (interrupt, registers) = driver::interrupt();
    let queues = driver.new_queues(device.queue_sizes());
    let transport = MmioTransport::new(device, queues, driver.memory.clone(), interrupt);
    let mut machine = Machine { driver, transport, registers };
    while let Some(step) = input.step() {
        match step % 4 {
            0 => machine.write(u64::from(input.u8()) * 4, input.u32()),
            1 => machine.set_up(step >> 2),
            2 => machine.transport.write(u64::from(input.u16()), input.bytes(usize::from(step >> 5))),
            _ => machine.driver.step(input),
        }
        machine.check();
    }
    machine.write(register::STATUS, 0);
    machine.check();
    assert_eq!(machine.read(register::STATUS), 0, "a reset clears the status");
}

impl<D: VirtioDevice> Machine<D> {
    fn write(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    fn read(&self, offset: u64) -> u32 {
        self.registers.at(offset).load(Ordering::SeqCst)
    }

    /// The steps of a valid driver, or those of them whose bit is not set in `omitted`.
    fn set_up(&self, omitted: u8) {
        let wanted = |step: u8| omitted & 1 << step == 0;
        if wanted(0) {
            self.write(register::STATUS, 0);
        }
        self.write(register::STATUS, STATUS_STEPS[0]);
        self.write(register::STATUS, STATUS_STEPS[1]);
        for half in (0..2).filter(|_| wanted(1)) {
            self.write(register::DEVICE_FEATURES_SEL, half);
            self.write(register::DRIVER_FEATURES_SEL, half);
            self.write(register::DRIVER_FEATURES, self.read(register::DEVICE_FEATURES));
        }
        self.write(register::STATUS, STATUS_STEPS[2]);
        for index in (0..self.driver.queue_count()).filter(|_| wanted(2)) {
            self.set_up_queue(index);
        }
        if wanted(3) {
            self.write(register::STATUS, STATUS_STEPS[3]);
        }
    }

    fn set_up_queue(&self, index: usize) {
        self.write(register::QUEUE_SEL, u32::try_from(index).expect("few queues"));
        self.write(register::QUEUE_NUM, u32::from(driver::QUEUE_SIZE));
        let places = [register::QUEUE_DESC_LOW, register::QUEUE_DRIVER_LOW, register::QUEUE_DEVICE_LOW];
        for (place, address) in places.into_iter().zip(rings(index)) {
            self.write(place, u32::try_from(address).expect("low"));
            self.write(place + 4, 0);
        }
        self.write(register::QUEUE_READY, 1);
    }

    /// What the guest can rely on after any write.
    fn check(&self) {
        let status = self.read(register::STATUS);
        if status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            assert_ne!(status & VIRTIO_CONFIG_S_FEATURES_OK, 0, "active without an agreement on features");
        }
        assert_ne!(self.read(register::INTERRUPT_STATUS) & 1, 0, "the driver looks for used buffers at each interrupt");
    }
}

/// Restores a device from a saved state, if it is one, and saves it again. The new state must be one, too. `make` is the device's
/// constructor. Returns whether the device was restored.
pub(crate) fn restore<D: VirtioDevice>(data: &[u8], make: impl Fn(Option<D::State>) -> D) -> bool {
    let Ok(state) = serde_json::from_slice::<TransportState<D::State>>(data) else { return false };
    let device = make(Some(again(&state.device)));
    let driver = RawDriver::new(device.queue_sizes().len());
    let (interrupt, registers) = driver::interrupt();
    let queues = driver.new_queues(device.queue_sizes());
    let restored = MmioTransport::restore(device, queues, driver.memory.clone(), interrupt, &state);
    let Ok(transport) = restored else { return false };
    again(&transport.save());
    let machine = Machine { driver, transport, registers };
    machine.set_up(0);
    machine.check();
    machine.write(register::STATUS, 0);
    true
}

/// A value after it was written and read.
fn again<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    let text = serde_json::to_string(value).expect("a state is written");
    serde_json::from_str(&text).expect("and read again")
}
