//! vCPUs: each runs the guest on a thread of its own and handles its exits.

mod kick;
mod source;
mod thread;

pub use source::VcpuSource;
pub(super) use source::{VcpuFactory, VcpuThreads};
pub(super) use thread::{Vcpu, VcpuContext};

/// Stack size of the machine's threads in bytes. It is less than a huge page, which Linux would allocate as a whole for the
/// default of 2 MiB. All threads have the same size, because the C library reuses the stack of a thread that has ended.
pub(super) const STACK_SIZE: usize = 256 << 10;
