//! Opens KVM and creates a virtual machine.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{KVM_API_VERSION, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};
use thiserror::Error;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::arch::Memory;
use crate::arch::layout;
use crate::mem::{BLOCK_SIZE, Region};
use crate::virtio::registers::RegisterPage;

/// The KVM device.
pub const KVM_DEVICE: &str = "/dev/kvm";

/// The capabilities that a machine requires.
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

/// Why a virtual machine cannot be created.
#[derive(Debug, Error)]
pub enum KvmError {
    /// The device does not exist.
    #[error(
        "{KVM_DEVICE} does not exist: load the kvm_intel or kvm_amd module, or enable virtualization in the firmware"
    )]
    Absent,
    /// The user has no permission to open the device.
    #[error("{KVM_DEVICE} may not be opened by this user")]
    Denied,
    /// The device cannot be opened.
    #[error("cannot open {KVM_DEVICE}")]
    Open(#[source] io::Error),
    /// The device has an unsupported API version.
    #[error("{KVM_DEVICE} has API version {0}, not {KVM_API_VERSION}")]
    Version(i32),
    /// The host's KVM lacks a capability.
    #[error("this host's KVM lacks {0}")]
    Missing(&'static str),
    /// The host's KVM does not support that many vCPUs.
    #[error("this host's KVM runs at most {max} vCPUs, {requested} were asked for")]
    TooManyVcpus {
        /// Number of vCPUs asked for.
        requested: u8,
        /// Most vCPUs that it supports.
        max: usize,
    },
    /// KVM refused a request.
    #[error("KVM cannot {0}")]
    Refused(&'static str, #[source] kvm_ioctls::Error),
}

/// Opens the KVM device.
///
/// # Errors
/// KVM is absent or may not be used.
pub fn open_device() -> Result<OwnedFd, KvmError> {
    let device = File::options().read(true).write(true).open(KVM_DEVICE);
    device.map(OwnedFd::from).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => KvmError::Absent,
        io::ErrorKind::PermissionDenied => KvmError::Denied,
        _ => KvmError::Open(error),
    })
}

/// Checks that the KVM device `device` can run a machine with `vcpus` vCPUs.
///
/// # Errors
/// KVM lacks a capability.
pub fn check(device: OwnedFd, vcpus: u8) -> Result<Kvm, KvmError> {
    // SAFETY: `into_raw_fd` has released the descriptor to `Kvm`. Requests to a descriptor of another device fail.
    let kvm = unsafe { Kvm::from_raw_fd(device.into_raw_fd()) };
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return Err(KvmError::Version(version));
    }
    if let Some((_, name)) = REQUIRED.into_iter().find(|(capability, _)| !kvm.check_extension(*capability)) {
        return Err(KvmError::Missing(name));
    }
    let max = kvm.get_max_vcpus();
    if usize::from(vcpus) > max { Err(KvmError::TooManyVcpus { requested: vcpus, max }) } else { Ok(kvm) }
}

/// Creates a virtual machine with `memory`, the devices' `registers`, interrupt controllers and a timer.
///
/// Memory is added before the interrupt controllers: with them, each change of the memory slots has to wait for readers in the
/// kernel (RCU).
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
    // With the dummy speaker KVM also handles port 0x61, which Linux polls when it calibrates with the timer.
    let pit = kvm_pit_config { flags: kvm_bindings::KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(|error| KvmError::Refused("create the timer", error))?;
    Ok(vm)
}

/// The slot of the first block of pluggable memory. It is greater than those of the memory at boot.
const FIRST_BLOCK_SLOT: u32 = 8;

/// Bytes of pluggable memory that a virtual machine can have: each block takes a slot, because a slot cannot be divided while vCPUs use
/// it. Linux 5.12 and later have slots for almost 64 GiB, earlier ones for almost 1 GiB. A multiple of the layout's unit.
#[must_use]
pub fn max_pluggable(kvm: &Kvm) -> u64 {
    let slots = kvm.get_nr_memslots().saturating_sub(FIRST_BLOCK_SLOT as usize);
    let bytes = BLOCK_SIZE * slots as u64;
    bytes - bytes % layout::PLUGGABLE_UNIT
}

/// Adds a block of `region` to the memory of a virtual machine, which may be running, or removes it.
///
/// # Errors
/// KVM refused.
pub fn set_block(vm: &VmFd, region: &Region, block: usize, plugged: bool) -> Result<(), KvmError> {
    let slot = u32::try_from(block).ok().and_then(|block| block.checked_add(FIRST_BLOCK_SLOT));
    let offset = BLOCK_SIZE * block as u64;
    let range = kvm_userspace_memory_region {
        slot: slot.expect("the region has as many blocks as there are slots"),
        guest_phys_addr: region.start().raw_value() + offset,
        // KVM removes a slot that gets no memory.
        memory_size: if plugged { BLOCK_SIZE } else { 0 },
        userspace_addr: region.host_address() + offset,
        ..Default::default()
    };
    // SAFETY: the block is within the region, a mapping that lives as long as the process and does not overlap other memory.
    unsafe { vm.set_user_memory_region(range) }.map_err(|error| KvmError::Refused("map memory for the guest", error))
}

fn add_memory(vm: &VmFd, memory: &Memory, registers: &[RegisterPage]) -> Result<(), KvmError> {
    let ram = memory.iter().map(|region| kvm_userspace_memory_region {
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.host_address() as u64,
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
        // SAFETY: the range is a mapping of that length, which lives as long as the process. The regions of guest memory and
        // the devices' addresses do not overlap.
        unsafe { vm.set_user_memory_region(range) }.map_err(|error| KvmError::Refused("map guest memory", error))?;
    }
    Ok(())
}
