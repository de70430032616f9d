//! Code that depends on the processor's architecture.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("vmrt runs on x86-64 only");

mod x86_64;

pub use x86_64::*;

/// The guest's memory.
pub type Memory = vm_memory::GuestMemoryMmap<()>;
