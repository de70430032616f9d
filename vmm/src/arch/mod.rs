//! Code that depends on the processor's architecture, and the guest's memory.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("vmrt runs on x86-64 only");

mod memory;
mod x86_64;

pub use memory::{Memory, MemoryRegion};
pub use x86_64::*;
