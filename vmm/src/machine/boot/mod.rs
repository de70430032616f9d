//! What the guest boots: kernel, initramfs and the kernel's command line.

mod command_line;
mod loader;

pub use command_line::command_line;
pub use loader::{LoadError, Loaded, load};

use std::thread::JoinHandle;

use super::MachineError;
use super::resources::OpenFile;
use super::vcpu::STACK_SIZE;
use crate::arch::Memory;
use crate::timeline;

/// The thread that loads kernel and initramfs.
pub(super) type Loading = JoinHandle<Result<Loaded, LoadError>>;

/// Loads kernel and initramfs on a new thread, see [`load`].
///
/// # Errors
/// The thread cannot be created.
pub(super) fn start_loading(
    memory: Memory,
    size: u64,
    kernel: &OpenFile,
    initramfs: &OpenFile,
) -> Result<Loading, MachineError> {
    let (mut kernel, mut initramfs) =
        (kernel.try_clone().map_err(MachineError::Event)?, initramfs.try_clone().map_err(MachineError::Event)?);
    let work = move || {
        let loaded = load(&memory, size, &mut kernel, &mut initramfs);
        timeline::mark("kernel and initramfs loaded");
        loaded
    };
    std::thread::Builder::new()
        .name("load".to_owned())
        .stack_size(STACK_SIZE)
        .spawn(work)
        .map_err(MachineError::LoadThread)
}
