//! Opening KVM, and a virtual machine in it.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};

use kvm_bindings::{KVM_API_VERSION, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};
use thiserror::Error;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::arch::layout;
use crate::mem::Region;
use crate::virtio::device::Memory;
use crate::virtio::registers::RegisterPage;

/// The device that machines are made with.
pub const KVM_DEVICE: &str = "/dev/kvm";

/// What the machine cannot do without.
const REQUIRED: [(Cap, &str); 8] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Why there is no virtual machine.
#[derive(Debug, Error)]
pub enum KvmError {
    /// The device is not there.
    #[error(
        "{KVM_DEVICE} does not exist: load the kvm_intel or kvm_amd module, or enable virtualization in the firmware"
    )]
    Absent,
    /// The device may not be opened.
    #[error("{KVM_DEVICE} may not be opened by this user")]
    Denied,
    /// The device cannot be opened.
    #[error("cannot open {KVM_DEVICE}")]
    Open(#[source] io::Error),
    /// The device speaks another API.
    #[error("{KVM_DEVICE} has API version {0}, not {KVM_API_VERSION}")]
    Version(i32),
    /// The host's KVM lacks something.
    #[error("this host's KVM lacks {0}")]
    Missing(&'static str),
    /// More vCPUs than this host's KVM runs.
    #[error("this host's KVM runs at most {most} vCPUs, {asked} were asked for")]
    TooManyVcpus {
        /// vCPUs asked for.
        asked: u8,
        /// vCPUs it runs.
        most: usize,
    },
    /// A request was refused.
    #[error("KVM cannot {0}")]
    Refused(&'static str, #[source] kvm_ioctls::Error),
}

/// Opens KVM and checks that it can run a machine with `vcpus` vCPUs.
///
/// # Errors
/// KVM is absent, may not be used, or lacks something; the error says which.
pub fn open(vcpus: u8) -> Result<Kvm, KvmError> {
    let device = File::options().read(true).write(true).open(KVM_DEVICE).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => KvmError::Absent,
        io::ErrorKind::PermissionDenied => KvmError::Denied,
        _ => KvmError::Open(error),
    })?;
    // SAFETY: the descriptor was just opened on the KVM device and is given away here.
    let kvm = unsafe { Kvm::from_raw_fd(device.into_raw_fd()) };
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return Err(KvmError::Version(version));
    }
    if let Some((_, name)) = REQUIRED.into_iter().find(|(capability, _)| !kvm.check_extension(*capability)) {
        return Err(KvmError::Missing(name));
    }
    let most = kvm.get_max_vcpus();
    if usize::from(vcpus) > most { Err(KvmError::TooManyVcpus { asked: vcpus, most }) } else { Ok(kvm) }
}

/// Creates a virtual machine with `memory`, `registers` where its virtio devices are, and interrupt controllers.
///
/// Memory comes first: a change of the memory slots waits for every reader that the interrupt controllers brought.
///
/// # Errors
/// KVM refused.
pub fn create_vm(kvm: &Kvm, memory: &Memory, registers: &[RegisterPage]) -> Result<VmFd, KvmError> {
    let vm = kvm.create_vm().map_err(|error| KvmError::Refused("create a virtual machine", error))?;
    add_memory(&vm, memory, registers)?;
    let address = usize::try_from(layout::KVM_TSS).expect("an address below 4 GiB");
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .and_then(|()| vm.set_tss_address(address))
        .map_err(|error| KvmError::Refused("place its own pages", error))?;
    vm.create_irq_chip().map_err(|error| KvmError::Refused("create the interrupt controllers", error))?;
    // With it, KVM answers port 0x61 too, which Linux polls where it calibrates with the timer.
    let pit = kvm_pit_config { flags: kvm_bindings::KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(|error| KvmError::Refused("create the timer", error))?;
    Ok(vm)
}

/// The slot of memory that is plugged in while the guest runs; behind all that are there from the start.
const PLUGGABLE_SLOT: u32 = 8;

/// Makes `region` memory of a virtual machine that may be running.
///
/// # Errors
/// KVM refused.
pub fn add_region(vm: &VmFd, region: &Region) -> Result<(), KvmError> {
    let range = kvm_userspace_memory_region {
        slot: PLUGGABLE_SLOT,
        guest_phys_addr: region.start().raw_value(),
        memory_size: region.length(),
        userspace_addr: region.host_address(),
        ..Default::default()
    };
    // SAFETY: the region is a mapping of that length which lives as long as the process, behind all other memory.
    unsafe { vm.set_user_memory_region(range) }.map_err(|error| KvmError::Refused("map memory for the guest", error))
}

fn add_memory(vm: &VmFd, memory: &Memory, registers: &[RegisterPage]) -> Result<(), KvmError> {
    let ram = memory.iter().map(|region| kvm_userspace_memory_region {
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        ..Default::default()
    });
    let registers = registers.first().map(|first| kvm_userspace_memory_region {
        flags: kvm_bindings::KVM_MEM_READONLY,
        guest_phys_addr: layout::VIRTIO_MMIO_START,
        memory_size: layout::VIRTIO_MMIO_SIZE * registers.len() as u64,
        userspace_addr: first.address(),
        ..Default::default()
    });
    for (slot, range) in (0..).zip(ram.chain(registers)) {
        let range = kvm_userspace_memory_region { slot, ..range };
        // SAFETY: the range is a mapping of that length which lives as long as the process, and neither regions of guest
        // memory nor the devices' addresses overlap.
        unsafe { vm.set_user_memory_region(range) }.map_err(|error| KvmError::Refused("map guest memory", error))?;
    }
    Ok(())
}
