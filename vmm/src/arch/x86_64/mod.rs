//! x86-64: Linux boots through its PVH entry and reads the machine's description from an MPTable.

mod boot;
mod cpuid;
pub mod layout;
mod mptable;
mod pvh;
mod registers;
mod timing_loop;
mod vcpu_state;
mod vm_state;

pub use boot::{Firmware, FirmwareError, write_firmware};
pub use cpuid::CpuidTemplate;
pub use registers::{VcpuSetupError, refresh_apic_map, set_up_boot_vcpu, set_up_vcpu};
pub use timing_loop::{run_timing_loop, timing_loop_code};
pub use vcpu_state::{VcpuState, VcpuStateError};
pub use vm_state::VmState;
