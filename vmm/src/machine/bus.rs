//! What vCPUs reach outside memory: virtio devices by address, the serial port and the reset line by port.

use std::sync::{Arc, Mutex, PoisonError};

use crate::arch::layout;
use crate::serial::{Com1, Console};

/// Registers of one virtio-mmio device. Guests read them without us ([`crate::virtio::registers`]).
pub trait Registers: Send + Sync {
    /// Writes at `offset` from the device's first register.
    fn write(&self, offset: u64, data: &[u8]);
}

/// The devices at their addresses. It does not change once the machine runs, and needs no lock.
#[derive(Clone, Default)]
pub struct MmioBus {
    devices: Vec<Arc<dyn Registers>>,
}

impl MmioBus {
    /// Number of devices.
    #[must_use]
    pub fn count(&self) -> usize {
        self.devices.len()
    }

    /// Puts a device at the next free address.
    pub fn add(&mut self, device: Arc<dyn Registers>) {
        self.devices.push(device);
    }

    /// Writes to `address`; where nothing answers, it is lost.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address) {
            device.write(offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(&dyn Registers, u64)> {
        let offset = address.checked_sub(layout::VIRTIO_MMIO_START)?;
        let index = usize::try_from(offset / layout::VIRTIO_MMIO_SIZE).ok()?;
        Some((self.devices.get(index)?.as_ref(), offset % layout::VIRTIO_MMIO_SIZE))
    }
}

/// What a write to a port did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PortWrite {
    /// Nothing that concerns the vCPU.
    Done,
    /// It pulled the reset line.
    Reset,
}

/// The I/O ports: COM1 and the keyboard controller's reset command.
pub struct Ports {
    com1: Mutex<Com1>,
}

impl Ports {
    /// Ports with a serial port that prints to `console`.
    #[must_use]
    pub fn new(console: Console) -> Self {
        Self { com1: Mutex::new(Com1::new(console)) }
    }

    /// Reads from `port`; where nothing answers, all bits are set.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        if let Some(register) = com1_register(port) {
            let mut com1 = self.com1();
            data.iter_mut().for_each(|byte| *byte = com1.read(register));
        } else {
            // A keyboard controller with an empty queue: Linux waits for that before it asks for the reset.
            data.fill(if port == layout::KEYBOARD_CONTROLLER { 0 } else { 0xff });
        }
    }

    /// Writes to `port`.
    pub fn write(&self, port: u16, data: &[u8]) -> PortWrite {
        if let Some(register) = com1_register(port) {
            let mut com1 = self.com1();
            data.iter().for_each(|byte| com1.write(register, *byte));
        }
        if port == layout::KEYBOARD_CONTROLLER && data.contains(&layout::KEYBOARD_CONTROLLER_RESET) {
            PortWrite::Reset
        } else {
            PortWrite::Done
        }
    }

    /// Asks the console something.
    pub fn with_console<T>(&self, ask: impl FnOnce(&Console) -> T) -> T {
        ask(self.com1().console())
    }

    /// A vCPU thread that panicked left a serial port that is as good as any.
    fn com1(&self) -> std::sync::MutexGuard<'_, Com1> {
        self.com1.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn com1_register(port: u16) -> Option<u8> {
    let register = port.checked_sub(layout::COM1).filter(|register| *register < layout::COM1_PORTS)?;
    u8::try_from(register).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(Default)]
    struct Register(AtomicU64);

    impl Registers for Register {
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.store(offset + u64::from(data[0]), Ordering::Relaxed);
        }
    }

    #[test]
    fn an_access_reaches_the_device_at_its_address_and_no_other() {
        let devices = [Arc::new(Register::default()), Arc::new(Register::default())];
        let mut bus = MmioBus::default();
        for device in &devices {
            bus.add(Arc::<Register>::clone(device));
        }
        bus.write(layout::VIRTIO_MMIO_START + layout::VIRTIO_MMIO_SIZE + 0x40, &[2]);
        assert_eq!(devices[1].0.load(Ordering::Relaxed), 0x42);
        assert_eq!(devices[0].0.load(Ordering::Relaxed), 0);
        for nowhere in
            [0, layout::VIRTIO_MMIO_START - 1, layout::VIRTIO_MMIO_START + 2 * layout::VIRTIO_MMIO_SIZE, u64::MAX]
        {
            bus.write(nowhere, &[9]);
        }
        assert_eq!(devices[0].0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn only_the_reset_command_resets() {
        let ports = Ports::new(Console::new(None));
        assert_eq!(ports.write(layout::KEYBOARD_CONTROLLER, &[0xfe]), PortWrite::Reset);
        assert_eq!(ports.write(layout::KEYBOARD_CONTROLLER, &[0xd1]), PortWrite::Done);
        assert_eq!(ports.write(0x80, &[0xfe]), PortWrite::Done);
        let mut status = [0xff];
        ports.read(layout::KEYBOARD_CONTROLLER, &mut status);
        assert_eq!(status, [0]);
        ports.read(0x70, &mut status);
        assert_eq!(status, [0xff]);
    }

    #[test]
    fn what_the_guest_prints_reaches_the_console() {
        let ports = Ports::new(Console::new(None));
        b"hello\n".iter().for_each(|byte| assert_eq!(ports.write(layout::COM1, &[*byte]), PortWrite::Done));
        assert_eq!(ports.with_console(Console::tail), "hello\n");
    }
}
