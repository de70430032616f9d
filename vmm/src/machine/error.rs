//! The errors of building and starting a machine.

use std::io;

use thiserror::Error;

use super::boot::LoadError;
use super::kvm::KvmError;
use super::memory::MemoryError;
use super::template::TemplateError;
use crate::arch::{FirmwareError, VcpuSetupError, VcpuStateError, layout};
use crate::virtio::state::RestoreError;

/// Why a machine cannot be built or started.
#[derive(Debug, Error)]
pub enum MachineError {
    /// KVM cannot run the machine.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory cannot be mapped.
    #[error("cannot create the guest's memory")]
    Memory(#[from] MemoryError),
    /// The kernel or the initramfs cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The boot parameters cannot be written.
    #[error("cannot describe the machine to the guest's kernel")]
    Firmware(#[from] FirmwareError),
    /// The template cannot be used.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// KVM cannot continue where the template's machine stopped.
    #[error("cannot save or restore the interrupt controllers, timer and clock")]
    RestoreVm(#[source] kvm_ioctls::Error),
    /// KVM refuses the saved state of the vCPU.
    #[error("cannot save or restore the vCPU")]
    RestoreVcpu(#[source] VcpuStateError),
    /// The thread of the vCPU has ended before.
    #[error("the vCPU has ended")]
    NoVcpu,
    /// The saved state of a device does not fit.
    #[error("cannot restore virtio device {0}")]
    RestoreDevice(usize, #[source] RestoreError),
    /// KVM cannot create a vCPU.
    #[error("cannot create vCPU {0}")]
    CreateVcpu(u8, #[source] kvm_ioctls::Error),
    /// KVM refuses the initial state of a vCPU.
    #[error("cannot set up vCPU {0}")]
    SetUpVcpu(u8, #[source] VcpuSetupError),
    /// The thread that loads kernel and initramfs cannot be created.
    #[error("cannot start the thread that loads the guest's software")]
    LoadThread(#[source] io::Error),
    /// The thread of a vCPU cannot be created.
    #[error("cannot start the thread of vCPU {0}")]
    Thread(u8, #[source] io::Error),
    /// No file descriptor is left.
    #[error("cannot create an event descriptor")]
    Event(#[source] io::Error),
    /// No memory is left.
    #[error("cannot map the devices' registers")]
    Registers(#[source] io::Error),
    /// No interrupt line is left.
    #[error("the machine has at most {max} devices", max = layout::MAX_VIRTIO_DEVICES)]
    TooManyDevices,
    /// The region for pluggable memory cannot be mapped.
    #[error("cannot map the region for pluggable memory")]
    Pluggable(#[source] MemoryError),
    /// KVM cannot connect a device's doorbell or interrupt line to a descriptor.
    #[error("cannot connect virtio device {0} to its descriptors")]
    Wire(usize, #[source] kvm_ioctls::Error),
}
