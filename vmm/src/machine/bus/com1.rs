//! The serial port COM1, a 16550A without interrupts. The guest's kernel prints by polling (`earlyprintk`), and never reads.

use std::convert::Infallible;

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

use super::Console;

/// An interrupt line that is not connected.
struct Unconnected;

impl Trigger for Unconnected {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The serial port as the guest sees it.
pub struct Com1(Serial<Unconnected, NoEvents, Console>);

impl Com1 {
    /// A serial port whose output goes to `console`.
    #[must_use]
    pub fn new(console: Console) -> Self {
        Self(Serial::new(Unconnected, console))
    }

    /// Reads the register at `offset`.
    pub fn read(&mut self, offset: u8) -> u8 {
        self.0.read(offset)
    }

    /// Writes the register at `offset`. The console and the unconnected interrupt line cannot fail.
    pub fn write(&mut self, offset: u8, value: u8) {
        if let Err(error) = self.0.write(offset, value) {
            tracing::debug!(%error, "the guest wrote to the serial port in an unsupported mode");
        }
    }

    /// The console that receives the output.
    #[must_use]
    pub fn console(&self) -> &Console {
        self.0.writer()
    }
}

#[cfg(test)]
mod tests {
    use super::super::FatalMessage;
    use super::*;

    const DATA: u8 = 0;
    const LINE_STATUS: u8 = 5;

    fn print(com1: &mut Com1, text: &str) {
        text.bytes().for_each(|byte| com1.write(DATA, byte));
    }

    #[test]
    fn the_transmitter_is_always_ready() {
        assert_eq!(Com1::new(Console::new(None)).read(LINE_STATUS) & 0x60, 0x60);
    }

    #[test]
    fn a_panic_is_found_after_its_time_stamp() {
        let mut com1 = Com1::new(Console::new(None));
        print(&mut com1, "[    0.1] booting\r\n[    0.2] Kernel panic - not syncing: VFS: Unable to mount root fs");
        assert_eq!(com1.console().fatal_message(), None, "an incomplete line does not count");
        print(&mut com1, "\r\n[    0.3] Kernel panic - not syncing: another\n");
        assert_eq!(com1.console().fatal_message(), Some(&FatalMessage::Panic("VFS: Unable to mount root fs".into())));
    }

    #[test]
    fn a_fatal_error_of_the_agent_is_found_and_a_warning_is_not() {
        let mut com1 = Com1::new(Console::new(None));
        print(&mut com1, "[    0.1] vmrt-agent: cannot set the clock\n");
        assert_eq!(com1.console().fatal_message(), None);
        print(&mut com1, "[    0.2] vmrt-agent gave up: no vsock\n");
        assert_eq!(com1.console().fatal_message(), Some(&FatalMessage::Agent("no vsock".into())));
    }
}
