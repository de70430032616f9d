//! The guest's CPUID: the features that KVM supports on this host, with the machine's topology.
//!
//! Linux measures frequencies that CPUID does not give, which takes tens of milliseconds. KVM reports its own leaves, among
//! them the kvm-clock with the TSC frequency, as supported. It does not report the TSC-deadline bit, which saves the guest the
//! calibration of its APIC timer, because the bit requires the in-kernel APIC. This machine always has that, so the bit is set
//! here.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use super::mptable::ProcessorId;

/// Leaves that are changed, named as in the manuals of Intel and AMD.
mod leaf {
    pub(super) const FEATURES: u32 = 0x1;
    pub(super) const CACHES: u32 = 0x4;
    pub(super) const PERFORMANCE_MONITORING: u32 = 0xa;
    pub(super) const TOPOLOGY: u32 = 0xb;
    pub(super) const TOPOLOGY_V2: u32 = 0x1f;
    pub(super) const AMD_FEATURES: u32 = 0x8000_0001;
    pub(super) const AMD_SIZES: u32 = 0x8000_0008;
    pub(super) const AMD_CACHES: u32 = 0x8000_001d;
    pub(super) const AMD_TOPOLOGY: u32 = 0x8000_001e;
}

const ECX_VMX: u32 = 1 << 5;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
const AMD_ECX_SVM: u32 = 1 << 2;

/// Level types of the extended topology leaves (Intel SDM volume 2A, CPUID leaf 0BH).
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// CPUID of a machine's vCPUs: one socket, as many cores as vCPUs, one thread per core.
#[derive(Clone, Debug)]
pub struct CpuidTemplate {
    entries: CpuId,
    vcpus: u32,
}

impl CpuidTemplate {
    /// CPUID of a machine that can have `vcpus` vCPUs.
    ///
    /// # Errors
    /// `KVM_GET_SUPPORTED_CPUID` failed.
    pub fn new(kvm: &Kvm, vcpus: u8) -> Result<Self, kvm_ioctls::Error> {
        let mut entries = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        for entry in entries.as_mut_slice() {
            adjust(entry, u32::from(vcpus), tsc_deadline);
        }
        Ok(Self { entries, vcpus: u32::from(vcpus) })
    }

    /// The entries of the vCPU whose APIC id is `id`.
    #[must_use]
    pub fn for_vcpu(&self, id: u8) -> CpuId {
        let mut entries = self.entries.clone();
        for entry in entries.as_mut_slice() {
            set_apic_id(entry, u32::from(id), self.vcpus);
        }
        entries
    }

    /// The values for the MPTable's processor entries.
    pub(super) fn processor_id(&self) -> ProcessorId {
        let features = self.entries.as_slice().iter().find(|entry| entry.function == leaf::FEATURES);
        features.map_or(ProcessorId { signature: 0, features: 0 }, |entry| ProcessorId {
            signature: entry.eax,
            features: entry.edx,
        })
    }
}

/// Number of APIC id bits that identify a core.
fn core_bits(vcpus: u32) -> u32 {
    vcpus.next_power_of_two().trailing_zeros()
}

/// Sets the values that are equal for all vCPUs.
fn adjust(entry: &mut kvm_cpuid_entry2, vcpus: u32, tsc_deadline: bool) {
    match entry.function {
        leaf::FEATURES => {
            entry.ecx = (entry.ecx & !ECX_VMX) | ECX_HYPERVISOR;
            if tsc_deadline {
                entry.ecx |= ECX_TSC_DEADLINE;
            }
            entry.ebx = (entry.ebx & !0x00ff_0000) | (vcpus << 16);
            set_bit(&mut entry.edx, EDX_HTT, vcpus > 1);
        }
        leaf::CACHES => adjust_cache(entry, vcpus),
        // No performance counters: the guest's probing would cost an exit for each register.
        leaf::PERFORMANCE_MONITORING => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        leaf::AMD_FEATURES => entry.ecx &= !AMD_ECX_SVM,
        leaf::AMD_SIZES => entry.ecx = (entry.ecx & !0xf0ff) | (core_bits(vcpus) << 12) | (vcpus - 1),
        leaf::AMD_CACHES => {
            let sharing = if cache_level(entry.eax) == 3 { vcpus } else { 1 };
            entry.eax = (entry.eax & !0x03ff_c000) | ((sharing - 1) << 14);
        }
        _ => {}
    }
}

/// Intel's cache leaf: all cores share the last level; each core has the other levels of its own.
fn adjust_cache(entry: &mut kvm_cpuid_entry2, vcpus: u32) {
    if entry.eax & 0x1f == 0 {
        return; // the list of caches ends here
    }
    let sharing = if cache_level(entry.eax) >= 3 { 1 << core_bits(vcpus) } else { 1 };
    let cores = 1_u32 << core_bits(vcpus);
    entry.eax = (entry.eax & 0x3fff) | ((sharing - 1) << 14) | ((cores - 1) << 26);
}

fn cache_level(eax: u32) -> u32 {
    (eax >> 5) & 0x7
}

fn set_bit(register: &mut u32, bit: u32, on: bool) {
    *register = if on { *register | bit } else { *register & !bit };
}

/// Sets the values that differ between vCPUs.
fn set_apic_id(entry: &mut kvm_cpuid_entry2, id: u32, vcpus: u32) {
    match entry.function {
        leaf::FEATURES => entry.ebx = (entry.ebx & 0x00ff_ffff) | (id << 24),
        leaf::TOPOLOGY | leaf::TOPOLOGY_V2 => set_topology_level(entry, id, vcpus),
        leaf::AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        _ => {}
    }
}

fn set_topology_level(entry: &mut kvm_cpuid_entry2, id: u32, vcpus: u32) {
    let (shift, processors, kind) = match entry.index {
        0 => (0, 1, LEVEL_THREAD),
        1 => (core_bits(vcpus), vcpus, LEVEL_CORE),
        _ => (0, 0, 0),
    };
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (shift, processors, (kind << 8) | entry.index, id);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, ..Default::default() }
    }

    fn template(vcpus: u8, mut entries: Vec<kvm_cpuid_entry2>) -> CpuidTemplate {
        for entry in &mut entries {
            adjust(entry, u32::from(vcpus), true);
        }
        CpuidTemplate { entries: CpuId::from_entries(&entries).unwrap(), vcpus: u32::from(vcpus) }
    }

    #[test]
    fn each_vcpu_has_its_apic_id_and_the_same_topology() {
        let template = template(6, vec![entry(leaf::FEATURES, 0), entry(leaf::TOPOLOGY, 0), entry(leaf::TOPOLOGY, 1)]);
        for id in 0..6 {
            let cpuid = template.for_vcpu(id);
            let [features, thread, core] = cpuid.as_slice() else { panic!("three entries") };
            assert_eq!(features.ebx >> 24, u32::from(id));
            assert_eq!((features.ebx >> 16) & 0xff, 6);
            assert_eq!((thread.eax, thread.ebx, thread.ecx, thread.edx), (0, 1, 0x100, u32::from(id)));
            assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (3, 6, 0x201, u32::from(id)));
        }
    }

    #[test]
    fn the_guest_has_the_deadline_timer_and_no_nested_virtualization() {
        let mut features = entry(leaf::FEATURES, 0);
        features.ecx = ECX_VMX;
        features.edx = EDX_HTT;
        let template = template(1, vec![features]);
        let seen = template.for_vcpu(0).as_slice()[0];
        assert_eq!(seen.ecx, ECX_HYPERVISOR | ECX_TSC_DEADLINE);
        assert_eq!(seen.edx & EDX_HTT, 0);
    }

    #[test]
    fn only_the_last_level_cache_is_shared() {
        let cache = |level: u32| kvm_cpuid_entry2 { eax: (level << 5) | 1, ..entry(leaf::CACHES, level) };
        let template = template(4, vec![cache(1), cache(3)]);
        let seen = template.for_vcpu(2);
        let sharing: Vec<u32> = seen.as_slice().iter().map(|entry| (entry.eax >> 14) & 0xfff).collect();
        assert_eq!(sharing, [0, 3]);
    }
}
