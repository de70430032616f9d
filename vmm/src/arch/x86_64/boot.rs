//! The data that a BIOS would leave in memory for the kernel: boot parameters, command line and MPTable.

use std::ffi::CStr;

use thiserror::Error;
use vm_memory::{Bytes, GuestMemoryError};

use super::cpuid::CpuidTemplate;
use super::{layout, mptable, pvh};
use crate::arch::Memory;

/// The description of a machine for its kernel.
#[derive(Clone, Copy, Debug)]
pub struct Firmware<'a> {
    /// Guest memory at boot in bytes.
    pub memory_size: u64,
    /// Most vCPUs that the machine can have.
    pub vcpus: u8,
    /// Number of virtio devices.
    pub devices: u8,
    /// Address and length in bytes of the initramfs.
    pub initramfs: (u64, u64),
    /// Kernel command line, at most [`layout::COMMAND_LINE_SIZE`] bytes including the NUL.
    pub command_line: &'a CStr,
}

/// Why the boot parameters cannot be written.
#[derive(Debug, Error)]
pub enum FirmwareError {
    /// The command line is longer than Linux keeps.
    #[error("the kernel command line has {0} bytes, Linux keeps {max}", max = layout::COMMAND_LINE_SIZE)]
    CommandLineTooLong(usize),
    /// Guest memory is too small.
    #[error("cannot write to guest memory")]
    Memory(#[from] GuestMemoryError),
    /// Guest memory is too small for the PVH structures.
    #[error("cannot write the PVH boot parameters")]
    Pvh(#[from] linux_loader::configurator::Error),
}

/// Writes the command line, the MPTable and the PVH structures to guest memory.
///
/// # Errors
/// The command line is too long, or guest memory is too small.
pub fn write_firmware(memory: &Memory, firmware: &Firmware<'_>, cpuid: &CpuidTemplate) -> Result<(), FirmwareError> {
    let command_line = firmware.command_line.to_bytes_with_nul();
    if command_line.len() > layout::COMMAND_LINE_SIZE {
        return Err(FirmwareError::CommandLineTooLong(command_line.len()));
    }
    memory.write_slice(command_line, layout::COMMAND_LINE)?;
    memory.write_slice(&mptable::floating_pointer(), layout::MP_FLOATING_POINTER)?;
    memory.write_slice(&mptable::table(firmware.vcpus, firmware.devices, cpuid.processor_id()), layout::MP_TABLE)?;
    let (start, size) = firmware.initramfs;
    Ok(pvh::write(memory, firmware.memory_size, pvh::Module { start, size })?)
}
