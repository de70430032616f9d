//! The virtual machine: memory, vCPUs, interrupt controllers and virtio devices.
//!
//! ```text
//! Resources::open ─► MachineBuilder::new ─► add_device ... ─► build ─► Machine::start ─► RunningMachine
//!  opens files         memory, VM, kernel                      vCPUs     first guest instruction
//! ```
//!
//! All descriptors are open when `build` returns; `start` only creates threads.
//!
//! # Modules
//! - [`resources`]: the checked configuration with open files.
//! - [`kvm`], [`memory`]: the host's KVM, and guest memory. [`probe`]: how fast the host's KVM is.
//! - [`boot`]: the kernel, the initramfs and the kernel's command line.
//! - [`bus`]: devices that vCPUs access through exits, among them the serial port. [`exit`]: why a machine ended.
//! - [`vcpu`]: vCPU threads.
//! - [`template`]: the state of a machine that has stopped, in a file.
//! - [`builder`]: builds a machine with any devices. [`assembly`]: builds the machine of a sandbox.

pub mod assembly;
pub mod boot;
pub mod builder;
pub mod bus;
mod error;
pub mod exit;
pub mod kvm;
pub mod memory;
pub mod probe;
pub mod resources;
pub mod template;
pub mod vcpu;

pub use builder::{Machine, MachineBuilder, RunningMachine};
pub use error::MachineError;
