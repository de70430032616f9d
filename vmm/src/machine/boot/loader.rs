//! Loads kernel and initramfs into guest memory.

use std::fs::File;
use std::path::PathBuf;

use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{Error as LoaderError, KernelLoader};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::arch::Memory;
use crate::arch::layout;
use crate::machine::resources::OpenFile;

/// Bytes that Linux needs to boot beside its image and the initramfs, which it unpacks.
const WORKING_MEMORY: u64 = 16 << 20;

const PAGE_SIZE: u64 = 4096;

/// Where kernel and initramfs are in guest memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Loaded {
    /// The kernel's PVH entry.
    pub entry: GuestAddress,
    /// Guest-physical address of the initramfs.
    pub initramfs_start: u64,
    /// Size of the initramfs in bytes.
    pub initramfs_size: u64,
}

/// Why kernel or initramfs cannot be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file is no kernel, is damaged, or does not fit into memory.
    #[error("cannot load the guest kernel {}", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// The loader's error.
        source: LoaderError,
    },
    /// The kernel has no PVH entry.
    #[error("the guest kernel {} has no PVH entry (CONFIG_PVH)", .0.display())]
    NoPvhEntry(PathBuf),
    /// Kernel and initramfs do not fit into the guest's memory.
    #[error("guest kernel and initramfs need {need} MiB of memory below 4 GiB to boot, the guest has {have} MiB")]
    MemoryTooSmall {
        /// MiB that they need.
        need: u64,
        /// MiB that the guest has below 4 GiB.
        have: u64,
    },
    /// The initramfs could not be read into guest memory.
    #[error("cannot read the initramfs {}", path.display())]
    Initramfs {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: GuestMemoryError,
    },
}

/// Loads the kernel to the addresses of its program headers, and the initramfs to the end of the memory below 4 GiB. `size` is
/// the guest's memory in bytes.
///
/// # Errors
/// A file is damaged or unreadable, or memory is too small.
pub fn load(memory: &Memory, size: u64, kernel: &mut OpenFile, initramfs: &mut OpenFile) -> Result<Loaded, LoadError> {
    let (entry, kernel_end) = load_kernel(memory, kernel)?;
    let need = kernel_end.saturating_add(initramfs.length.saturating_mul(2)).saturating_add(WORKING_MEMORY);
    let low_memory = size.min(layout::HOLE_START);
    if need > low_memory {
        return Err(LoadError::MemoryTooSmall { need: need.div_ceil(1 << 20), have: low_memory >> 20 });
    }
    let start = (low_memory - initramfs.length) / PAGE_SIZE * PAGE_SIZE;
    read_into(memory, GuestAddress(start), &mut initramfs.file, initramfs.length)
        .map_err(|source| LoadError::Initramfs { path: initramfs.path.clone(), source })?;
    Ok(Loaded { entry, initramfs_start: start, initramfs_size: initramfs.length })
}

/// Returns the kernel's PVH entry and the first address after the kernel.
fn load_kernel(memory: &Memory, kernel: &mut OpenFile) -> Result<(GuestAddress, u64), LoadError> {
    let lowest = Some(GuestAddress(layout::HIGH_MEMORY_START));
    let loaded = Elf::load(memory, None, &mut kernel.file, lowest);
    let loaded = loaded.map_err(|source| LoadError::Kernel { path: kernel.path.clone(), source })?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Ok((entry, loaded.kernel_end)),
        _ => Err(LoadError::NoPvhEntry(kernel.path.clone())),
    }
}

fn read_into(memory: &Memory, start: GuestAddress, file: &mut File, length: u64) -> Result<(), GuestMemoryError> {
    let length = usize::try_from(length).expect("checked to fit into the guest's memory");
    memory.read_exact_volatile_from(start, file, length)
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;
    use crate::machine::memory;

    const MEMORY: u64 = 64 << 20;
    const ENTRY: u32 = 0x100_0010;

    fn open(bytes: &[u8]) -> OpenFile {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        OpenFile { path: "FILE".into(), file, length: bytes.len() as u64 }
    }

    /// A kernel of one page at 16 MiB, with or without a PVH note.
    fn kernel(with_note: bool) -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0x10, &[2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64
        put(0x18, &u64::from(ENTRY).to_le_bytes());
        put(0x20, &64_u64.to_le_bytes()); // the program headers follow this header
        put(0x34, &[64, 0, 56, 0, 2, 0]); // two program headers
        program_header(&mut put, 64, 1, (0, 0x100_0000, 4096));
        program_header(&mut put, 120, if with_note { 4 } else { 0 }, (0x200, 0, 20));
        put(0x200, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]); // lengths of name and value, XEN_ELFNOTE_PHYS32_ENTRY
        put(0x20c, b"Xen\0");
        put(0x210, &ENTRY.to_le_bytes());
        image
    }

    fn program_header(
        put: &mut impl FnMut(usize, &[u8]),
        at: usize,
        kind: u32,
        (offset, address, size): (u64, u64, u64),
    ) {
        put(at, &kind.to_le_bytes());
        for (index, value) in [offset, address, address, size, size].into_iter().enumerate() {
            put(at + 8 + 8 * index, &value.to_le_bytes());
        }
    }

    fn load_into_64_mib(kernel: &[u8], initramfs: &[u8]) -> Result<Loaded, LoadError> {
        let memory = memory::map(MEMORY, memory::Backing::Zeros).unwrap();
        let loaded = load(&memory, MEMORY, &mut open(kernel), &mut open(initramfs))?;
        let mut loaded_initramfs = vec![0; initramfs.len()];
        memory.read_slice(&mut loaded_initramfs, GuestAddress(loaded.initramfs_start)).unwrap();
        assert_eq!(loaded_initramfs, initramfs);
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x100_0000)).unwrap(), u32::from_le_bytes(*b"\x7fELF"));
        Ok(loaded)
    }

    #[test]
    fn kernel_and_initramfs_are_loaded() {
        let loaded = load_into_64_mib(&kernel(true), &[7; 5000]).unwrap();
        assert_eq!(loaded.entry, GuestAddress(u64::from(ENTRY)));
        assert_eq!((loaded.initramfs_start, loaded.initramfs_size), (MEMORY - 8192, 5000));
    }

    #[test]
    fn an_invalid_kernel_is_an_error_that_names_the_file() {
        let error = |kernel: &[u8]| crate::chain(&load_into_64_mib(kernel, b"cpio").unwrap_err());
        assert_eq!(error(&kernel(false)), "the guest kernel FILE has no PVH entry (CONFIG_PVH)");
        assert!(error(&[0; 4096]).starts_with("cannot load the guest kernel FILE: "));
        assert!(error(&kernel(true)[..2000]).starts_with("cannot load the guest kernel FILE: "), "truncated");
        assert!(error(b"\x7fELF").starts_with("cannot load the guest kernel FILE: "));
    }

    #[test]
    fn an_initramfs_that_does_not_fit_is_an_error() {
        let error = load_into_64_mib(&kernel(true), &vec![1; 20 << 20]).unwrap_err().to_string();
        assert_eq!(error, "guest kernel and initramfs need 73 MiB of memory below 4 GiB to boot, the guest has 64 MiB");
    }
}
