//! The initial state of vCPUs.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vm_memory::GuestAddress;

use super::cpuid::CpuidTemplate;
use super::layout;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRINGS: u64 = 1;
const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
/// MTRRs enabled, with write-back as the default memory type, as a BIOS would set them.
const MTRR_ENABLED_WRITE_BACK: u64 = (1 << 11) | 6;

const CR0_PROTECTION: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const RFLAGS_ALWAYS_SET: u64 = 1 << 1;

/// Segment types (Intel SDM volume 3, tables 3-1 and 3-2).
const CODE_EXECUTE_READ_ACCESSED: u8 = 0xb;
const DATA_READ_WRITE_ACCESSED: u8 = 0x3;
const TSS_32_BIT_BUSY: u8 = 0xb;

/// The part of a vCPU's state that KVM refused.
#[derive(Debug, Error)]
pub enum VcpuSetupError {
    /// The CPUID entries.
    #[error("cannot set CPUID")]
    Cpuid(#[source] kvm_ioctls::Error),
    /// The model-specific registers.
    #[error("cannot set the model-specific registers")]
    Msrs(#[source] kvm_ioctls::Error),
    /// One model-specific register.
    #[error("KVM does not take model-specific register {0:#x}")]
    Msr(u32),
    /// Segment and control registers.
    #[error("cannot set the segment and control registers")]
    Sregs(#[source] kvm_ioctls::Error),
    /// General registers.
    #[error("cannot set the general registers")]
    Regs(#[source] kvm_ioctls::Error),
    /// The local APIC.
    #[error("cannot set the local APIC")]
    Lapic(#[source] kvm_ioctls::Error),
}

/// Sets CPUID and model-specific registers of the vCPU with APIC id `id`. Every vCPU but the first then waits until the guest
/// starts it.
///
/// # Errors
/// KVM refused.
pub fn set_up_vcpu(vcpu: &VcpuFd, id: u8, cpuid: &CpuidTemplate) -> Result<(), VcpuSetupError> {
    vcpu.set_cpuid2(&cpuid.for_vcpu(id)).map_err(VcpuSetupError::Cpuid)?;
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let entries =
        [entry(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRINGS), entry(MSR_MTRR_DEFAULT_TYPE, MTRR_ENABLED_WRITE_BACK)];
    let msrs = Msrs::from_entries(&entries).expect("two entries fit");
    let set = vcpu.set_msrs(&msrs).map_err(VcpuSetupError::Msrs)?;
    entries.get(set).map_or(Ok(()), |refused| Err(VcpuSetupError::Msr(refused.index)))
}

/// Makes a vCPU that is created while others run reachable for their interrupts. KVM maps APIC ids to vCPUs by a table. It
/// rebuilds the table when the state of a local APIC is set, but not when a vCPU is created.
///
/// # Errors
/// KVM refused.
pub fn refresh_apic_map(vcpu: &VcpuFd) -> Result<(), VcpuSetupError> {
    vcpu.get_lapic().and_then(|state| vcpu.set_lapic(&state)).map_err(VcpuSetupError::Lapic)
}

/// Sets the first vCPU to the kernel's PVH entry: 32-bit protected mode, flat segments, no paging, and the address of the start
/// information in EBX.
///
/// # Errors
/// KVM refused.
pub fn set_up_boot_vcpu(vcpu: &VcpuFd, entry: GuestAddress) -> Result<(), VcpuSetupError> {
    let mut sregs = vcpu.get_sregs().map_err(VcpuSetupError::Sregs)?;
    set_protected_mode(&mut sregs);
    vcpu.set_sregs(&sregs).map_err(VcpuSetupError::Sregs)?;
    let regs =
        kvm_regs { rflags: RFLAGS_ALWAYS_SET, rip: entry.0, rbx: layout::PVH_START_INFO.0, ..Default::default() };
    vcpu.set_regs(&regs).map_err(VcpuSetupError::Regs)
}

/// Sets the segments' hidden parts only, without a descriptor table: the kernel loads its own table before it loads a selector.
fn set_protected_mode(sregs: &mut kvm_sregs) {
    let data = flat_segment(0x10, DATA_READ_WRITE_ACCESSED);
    sregs.cs = flat_segment(0x08, CODE_EXECUTE_READ_ACCESSED);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { selector: 0x18, limit: 0x67, type_: TSS_32_BIT_BUSY, present: 1, ..Default::default() };
    sregs.cr0 = CR0_PROTECTION | CR0_EXTENSION_TYPE;
    sregs.cr4 = 0;
}

fn flat_segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment { base: 0, limit: u32::MAX, selector, type_, present: 1, db: 1, s: 1, g: 1, ..Default::default() }
}
