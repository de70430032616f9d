//! Devices that a vCPU accesses through a KVM exit: virtio devices by address, the serial port and the keyboard controller
//! by I/O port.

mod com1;
mod console;
mod io_ports;
mod mmio;

pub use com1::Com1;
pub use console::{Console, FatalMessage};
pub use io_ports::{IoPorts, PortWrite};
pub use mmio::MmioBus;
