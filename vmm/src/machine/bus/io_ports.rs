//! The I/O ports: COM1 and the keyboard controller's reset command.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Com1, Console};
use crate::arch::layout;

/// The effect of a write to an I/O port on the vCPU.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PortWrite {
    /// The vCPU continues.
    Done,
    /// The guest resets its processor.
    Reset,
}

/// The machine's I/O ports.
pub struct IoPorts {
    com1: Mutex<Com1>,
}

impl IoPorts {
    /// I/O ports with a serial port whose output goes to `console`.
    #[must_use]
    pub fn new(console: Console) -> Self {
        Self { com1: Mutex::new(Com1::new(console)) }
    }

    /// Reads from `port`. A port without a device reads as all ones.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        if let Some(register) = com1_register(port) {
            let mut com1 = self.com1();
            data.iter_mut().for_each(|byte| *byte = com1.read(register));
        } else {
            // 0 is the status of a keyboard controller with an empty buffer, for which Linux waits before it sends the reset
            // command.
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

    /// Calls `read` with the console.
    pub fn with_console<T>(&self, read: impl FnOnce(&Console) -> T) -> T {
        read(self.com1().console())
    }

    /// The serial port has no invariant that a panicking vCPU thread could have broken, so a poisoned lock is ignored.
    fn com1(&self) -> MutexGuard<'_, Com1> {
        self.com1.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn com1_register(port: u16) -> Option<u8> {
    let register = port.checked_sub(layout::COM1).filter(|register| *register < layout::COM1_PORTS)?;
    u8::try_from(register).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        let ports = IoPorts::new(Console::new(None));
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
    fn output_of_the_guest_reaches_the_console() {
        let ports = IoPorts::new(Console::new(None));
        b"hello\n".iter().for_each(|byte| assert_eq!(ports.write(layout::COM1, &[*byte]), PortWrite::Done));
        assert_eq!(ports.with_console(Console::tail), "hello\n");
    }
}
