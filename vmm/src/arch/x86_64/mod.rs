//! x86-64: Linux boots through its PVH entry and reads the machine's description from an MPTable.

mod boot;
mod counting;
mod cpuid;
pub mod layout;
mod mptable;
mod pvh;
mod registers;

pub use boot::{Firmware, FirmwareError, write_firmware};
pub use counting::{count, counting_code};
pub use cpuid::CpuidTemplate;
pub use registers::{VcpuSetupError, connect_vcpu, set_up_boot_vcpu, set_up_vcpu};
