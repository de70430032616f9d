//! Saves the state of a vCPU that has stopped, and gives it to another one.

use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
    kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The timer of a local APIC in TSC-deadline mode. It takes effect only after the mode and the TSC were set.
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// Most model-specific registers in one request to KVM.
const MSRS_AT_ONCE: usize = 64;

/// The state of a vCPU.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    tsc_khz: u32,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    /// Index and value.
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
}

/// Why the state of a vCPU cannot be saved or restored.
#[derive(Debug, Error)]
pub enum VcpuStateError {
    /// KVM refused a request.
    #[error("KVM cannot {0}")]
    Refused(&'static str, #[source] kvm_ioctls::Error),
    /// KVM does not take the value of a model-specific register.
    #[error("KVM does not take model-specific register {0:#x}")]
    Msr(u32),
    /// The time stamp counter runs at another rate than that of the saved vCPU.
    #[error("the time stamp counter runs at {now} kHz, and ran at {saved} kHz")]
    TscFrequency {
        /// The saved rate.
        saved: u32,
        /// The present rate.
        now: u32,
    },
}

fn refused(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> VcpuStateError {
    move |error| VcpuStateError::Refused(step, error)
}

impl VcpuState {
    /// Saves a vCPU that does not run. `msrs` are the indices of the model-specific registers that KVM can save.
    ///
    /// # Errors
    /// KVM refused.
    pub fn save(vcpu: &VcpuFd, msrs: &[u32]) -> Result<Self, VcpuStateError> {
        Ok(Self {
            tsc_khz: vcpu.get_tsc_khz().map_err(refused("report the rate of the time stamp counter"))?,
            // This request comes first, because it completes the start of a vCPU by another one.
            mp_state: vcpu.get_mp_state().map_err(refused("save whether the vCPU runs"))?,
            regs: vcpu.get_regs().map_err(refused("save the general registers"))?,
            sregs: vcpu.get_sregs().map_err(refused("save the segment and control registers"))?,
            xsave: vcpu.get_xsave().map_err(refused("save the floating point registers"))?,
            xcrs: vcpu.get_xcrs().map_err(refused("save the extended control registers"))?,
            debug_regs: vcpu.get_debug_regs().map_err(refused("save the debug registers"))?,
            lapic: vcpu.get_lapic().map_err(refused("save the local APIC"))?,
            msrs: read_msrs(vcpu, msrs)?,
            events: vcpu.get_vcpu_events().map_err(refused("save the pending events"))?,
        })
    }

    /// Gives the state to a new vCPU that has the same CPUID.
    ///
    /// # Errors
    /// KVM refused, or the time stamp counter of this host runs at another rate.
    pub fn restore(&self, vcpu: &VcpuFd) -> Result<(), VcpuStateError> {
        let now = vcpu.get_tsc_khz().map_err(refused("report the rate of the time stamp counter"))?;
        if now != self.tsc_khz {
            return Err(VcpuStateError::TscFrequency { saved: self.tsc_khz, now });
        }
        vcpu.set_mp_state(self.mp_state).map_err(refused("set whether the vCPU runs"))?;
        vcpu.set_regs(&self.regs).map_err(refused("set the general registers"))?;
        vcpu.set_sregs(&self.sregs).map_err(refused("set the segment and control registers"))?;
        // SAFETY: the size of the structure is that which KVM reads, because no feature with a larger state is enabled: a process has
        // to ask Linux for those (`arch_prctl(2)`), and the VMM does not.
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(refused("set the floating point registers"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(refused("set the extended control registers"))?;
        vcpu.set_debug_regs(&self.debug_regs).map_err(refused("set the debug registers"))?;
        vcpu.set_lapic(&self.lapic).map_err(refused("set the local APIC"))?;
        self.restore_msrs(vcpu)?;
        vcpu.set_vcpu_events(&self.events).map_err(refused("set the pending events"))
    }

    /// Sets the registers whose values differ from those of the new vCPU. Others need not be taken by KVM.
    fn restore_msrs(&self, vcpu: &VcpuFd) -> Result<(), VcpuStateError> {
        let indices: Vec<_> = self.msrs.iter().map(|(index, _)| *index).collect();
        let present = read_msrs(vcpu, &indices)?;
        let (last, first): (Vec<_>, Vec<_>) = self
            .msrs
            .iter()
            .filter(|saved| !present.contains(saved))
            .partition(|(index, _)| *index == MSR_TSC_DEADLINE);
        write_msrs(vcpu, &first)?;
        write_msrs(vcpu, &last)
    }
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, data, ..Default::default() }
}

/// Reads the registers with these indices. Registers that KVM lists but cannot read are left out.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, VcpuStateError> {
    let mut values = Vec::with_capacity(indices.len());
    let mut left = indices;
    while !left.is_empty() {
        let some = &left[..left.len().min(MSRS_AT_ONCE)];
        let entries: Vec<_> = some.iter().map(|index| entry(*index, 0)).collect();
        let mut msrs = Msrs::from_entries(&entries).expect("as many entries fit");
        let read = vcpu.get_msrs(&mut msrs).map_err(refused("read the model-specific registers"))?;
        values.extend(msrs.as_slice().iter().take(read).map(|entry| (entry.index, entry.data)));
        // KVM stops at the first one that it cannot read.
        left = &left[(read + usize::from(read < some.len())).min(left.len())..];
    }
    Ok(values)
}

fn write_msrs(vcpu: &VcpuFd, values: &[&(u32, u64)]) -> Result<(), VcpuStateError> {
    for some in values.chunks(MSRS_AT_ONCE) {
        let entries: Vec<_> = some.iter().map(|(index, value)| entry(*index, *value)).collect();
        let msrs = Msrs::from_entries(&entries).expect("as many entries fit");
        let written = vcpu.set_msrs(&msrs).map_err(refused("set the model-specific registers"))?;
        if let Some(entry) = entries.get(written) {
            return Err(VcpuStateError::Msr(entry.index));
        }
    }
    Ok(())
}
