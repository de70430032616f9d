//! The two ends of the device: the sandbox's [`Resizer`], and the device's [`Pluggable`].

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::blocks::Blocks;
use super::region::Region;
use super::{BLOCK_SIZE, MemState};

const MIB: u64 = 1 << 20;

/// Why a machine cannot be resized.
#[derive(Debug, Error)]
pub enum ResizeError {
    /// The size exceeds the machine's maximum.
    #[error("this machine can have {} MiB at most, not {}", max / MIB, requested.div_ceil(MIB))]
    TooLarge {
        /// Requested size in bytes.
        requested: u64,
        /// Maximum size in bytes.
        max: u64,
    },
    /// The device's eventfd cannot be written.
    #[error("cannot wake the memory device")]
    Wake(#[source] io::Error),
}

/// The state that both ends share.
#[derive(Debug)]
pub(super) struct SharedSizes {
    region: Region,
    requested: AtomicU64,
    plugged: AtomicU64,
    /// Readable after another size was requested.
    pub(super) requested_event: EventFd,
    /// Readable after the driver has plugged or unplugged blocks.
    changed: EventFd,
}

impl SharedSizes {
    pub(super) fn requested(&self) -> u64 {
        self.requested.load(Ordering::SeqCst)
    }

    /// Stores the number of plugged bytes and notifies the sandbox.
    pub(super) fn set_plugged(&self, bytes: u64) -> io::Result<()> {
        self.plugged.store(bytes, Ordering::SeqCst);
        self.changed.write(1)
    }

    /// `struct virtio_mem_config` (section 5.15.4). The usable region is the whole region at all times. The requested
    /// size is what limits the driver.
    pub(super) fn config(&self) -> Vec<u8> {
        let (node, length) = (0, self.region.length());
        let (plugged, requested) = (self.plugged.load(Ordering::SeqCst), self.requested());
        let fields = [BLOCK_SIZE, node, self.region.start().0, length, length, plugged, requested];
        fields.into_iter().flat_map(u64::to_le_bytes).collect()
    }
}

/// Adds the block with this number to the memory that vCPUs see, or removes it.
pub type SetBlock = Box<dyn Fn(usize, bool) -> io::Result<()> + Send>;

/// The sandbox's end.
#[derive(Debug)]
pub struct Resizer {
    sizes: Arc<SharedSizes>,
    boot_size: u64,
    max: u64,
}

/// The device's end: the region's blocks.
pub struct Pluggable {
    pub(super) blocks: Blocks,
    region: Region,
    pub(super) sizes: Arc<SharedSizes>,
    set_block: SetBlock,
}

impl std::fmt::Debug for Pluggable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pluggable").field("blocks", &self.blocks).field("sizes", &self.sizes).finish_non_exhaustive()
    }
}

/// Both ends of the memory device of a machine that boots with `boot_size` bytes and can have `max` bytes.
///
/// # Errors
/// The process has no free file descriptor.
pub fn pluggable(region: Region, boot_size: u64, max: u64, set_block: SetBlock) -> io::Result<(Resizer, Pluggable)> {
    let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
    let sizes = Arc::new(SharedSizes {
        region: region.clone(),
        requested: AtomicU64::new(0),
        plugged: AtomicU64::new(0),
        requested_event: event()?,
        changed: event()?,
    });
    let max = max.min(boot_size + region.length());
    let blocks = Blocks::new(region.start().0, region.length());
    let resizer = Resizer { sizes: Arc::clone(&sizes), boot_size, max };
    Ok((resizer, Pluggable { blocks, region, sizes, set_block }))
}

impl Resizer {
    /// Requests a machine of `size` bytes. Returns the size that the machine will have if the driver complies, in
    /// bytes: whole blocks, and not less than the boot size.
    ///
    /// # Errors
    /// `size` exceeds the maximum, or the device's eventfd cannot be written.
    pub fn request(&self, size: u64) -> Result<u64, ResizeError> {
        if size > self.max {
            return Err(ResizeError::TooLarge { requested: size, max: self.max });
        }
        let requested = size.saturating_sub(self.boot_size).next_multiple_of(BLOCK_SIZE);
        self.set_requested(requested).map_err(ResizeError::Wake)?;
        Ok(self.boot_size + requested)
    }

    /// Cancels the last request: requests only what is plugged now.
    ///
    /// # Errors
    /// The device's eventfd cannot be written.
    pub fn request_actual_size(&self) -> io::Result<()> {
        self.set_requested(self.plugged())
    }

    fn set_requested(&self, requested: u64) -> io::Result<()> {
        self.sizes.requested.store(requested, Ordering::SeqCst);
        self.sizes.requested_event.write(1)
    }

    /// The memory of the guest in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.boot_size + self.plugged()
    }

    /// The memory of the guest in bytes, without what it booted with.
    #[must_use]
    pub fn plugged(&self) -> u64 {
        self.sizes.plugged.load(Ordering::SeqCst)
    }

    /// Readable after [`Resizer::size`] may have changed.
    #[must_use]
    pub fn changed(&self) -> &EventFd {
        &self.sizes.changed
    }
}

impl Pluggable {
    /// The state to be saved.
    pub(super) fn save(&self) -> MemState {
        MemState { requested: self.sizes.requested(), plugged: self.blocks.save() }
    }

    /// Restores the saved state. The blocks' contents are restored with the rest of guest memory.
    pub(super) fn restore(&mut self, state: &MemState) {
        for run in &state.plugged {
            if let Err(error) = self.add(self.blocks.saved_range(*run)) {
                tracing::error!(%error, "cannot restore memory of the guest");
            }
        }
        self.sizes.requested.store(state.requested, Ordering::SeqCst);
        self.sizes.plugged.store(self.blocks.plugged(), Ordering::SeqCst);
    }

    /// Plugs unplugged blocks: gives them to vCPUs and devices.
    ///
    /// # Errors
    /// KVM refused. All of the blocks are then unplugged.
    pub(super) fn add(&mut self, blocks: Range<usize>) -> io::Result<()> {
        for block in blocks.clone() {
            if let Err(error) = self.set(block, true) {
                (blocks.start..block).for_each(|block| drop(self.set(block, false)));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Unplugs those of the blocks that are plugged, and returns the memory of all unplugged blocks to the host. Among them may be
    /// blocks that were unplugged before: a request that a device had begun may have written to them since.
    ///
    /// # Errors
    /// The host refused. Blocks that it did not refuse to unplug are unplugged.
    pub(super) fn remove(&mut self, blocks: Range<usize>) -> io::Result<()> {
        for block in blocks {
            if self.blocks.is_plugged(block) {
                self.set(block, false)?;
            }
        }
        self.blocks.runs(false).into_iter().try_for_each(|run| self.region.discard(run))
    }

    fn set(&mut self, block: usize, plugged: bool) -> io::Result<()> {
        (self.set_block)(block, plugged)?;
        self.region.set_plugged(block, plugged);
        self.blocks.set(block..block + 1, plugged);
        Ok(())
    }
}
