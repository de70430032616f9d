//! A request to change the machine's memory, until the guest has plugged or unplugged its blocks.

use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use agent::{Failure, FailureKind};

use super::clients::Caller;
use super::failures::failure;
use crate::control::Reply;
use crate::mem::{ResizeError, Resizer};

/// Bytes of a MiB.
const MIB: u64 = 1 << 20;

/// Time the guest has to plug the next block of memory.
const PLUG_TIMEOUT: Duration = Duration::from_secs(10);

/// Time the guest has to unplug the next block. A guest that cannot unplug one does not report it.
const UNPLUG_TIMEOUT: Duration = Duration::from_secs(3);

/// The machine's memory and the pending request to change its size.
#[derive(Debug)]
pub(super) struct MemoryResize {
    resizer: Resizer,
    pending: Option<PendingResize>,
}

/// A client's request that the guest has not finished. Sizes are in bytes.
#[derive(Debug)]
struct PendingResize {
    /// The client; `None` if the VMM itself wants the change.
    caller: Option<Caller>,
    target: u64,
    growing: bool,
    /// The size that came closest to the target. Only a size that is closer extends the deadline.
    closest: u64,
    deadline: Instant,
}

impl PendingResize {
    fn timeout(&self) -> Duration {
        if self.growing { PLUG_TIMEOUT } else { UNPLUG_TIMEOUT }
    }

    /// Extends the deadline if the guest's memory is closer to the target than before.
    fn update(&mut self, size: u64, now: Instant) {
        if size.abs_diff(self.target) < self.closest.abs_diff(self.target) {
            self.closest = size;
            self.deadline = now + self.timeout();
        }
    }
}

impl MemoryResize {
    /// No request is pending. `resizer` controls the machine's memory device.
    pub(super) fn new(resizer: Resizer) -> Self {
        Self { resizer, pending: None }
    }

    /// Whether a client waits for a change. Its request replaces one of the VMM itself.
    pub(super) fn has_waiter(&self) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.caller.is_some())
    }

    /// Whether the machine is getting the memory that it has in addition to its template's.
    pub(super) fn is_growing_to_size(&self) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.caller.is_none())
    }

    /// Whether the guest has less than `mib` MiB of memory.
    pub(super) fn is_smaller_than(&self, mib: u64) -> bool {
        self.resizer.size() < mib.saturating_mul(MIB)
    }

    /// When [`MemoryResize::take_result`] has to be called next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.pending.as_ref().map(|pending| pending.deadline)
    }

    /// Removes and returns the waiting caller.
    pub(super) fn take_waiter(&mut self) -> Option<Caller> {
        self.pending.take()?.caller
    }

    /// Requests that the guest has `mib` MiB of memory.
    ///
    /// # Errors
    /// The machine cannot have that much memory, or KVM refused.
    pub(super) fn start(&mut self, caller: Option<Caller>, mib: u64, now: Instant) -> Result<(), ResizeError> {
        let before = self.resizer.size();
        let target = self.resizer.request(mib.saturating_mul(MIB))?;
        let mut pending = PendingResize { caller, target, growing: target > before, closest: before, deadline: now };
        pending.deadline += pending.timeout();
        self.pending = Some(pending);
        Ok(())
    }

    /// The result, when the guest has the target size or has not come closer to it in time.
    pub(super) fn take_result(&mut self, now: Instant) -> Option<(Option<Caller>, Result<Reply, Failure>)> {
        let size = self.resizer.size();
        let pending = self.pending.as_mut()?;
        pending.update(size, now);
        if size != pending.target && now < pending.deadline {
            return None;
        }
        let PendingResize { caller, target, growing, .. } = self.pending.take()?;
        if size == target {
            return Some((caller, Ok(Reply::Memory(size / MIB))));
        }
        if let Err(error) = self.resizer.request_actual_size() {
            tracing::error!(%error, "cannot set the requested memory size to the guest's actual size");
        }
        let cause = format!("the guest got to {} MiB and no further within {PLUG_TIMEOUT:?}", size / MIB);
        let step = step(target / MIB);
        Some((
            caller,
            if growing { Err(failure(FailureKind::Timeout, step, cause)) } else { Ok(Reply::Memory(size / MIB)) },
        ))
    }

    /// Bytes of memory that are plugged beside the memory of the boot.
    pub(super) fn plugged(&self) -> u64 {
        self.resizer.plugged()
    }

    /// Clears the event that the guest has plugged or unplugged memory.
    pub(super) fn clear_event(&self) {
        // An error means that nothing is left to read.
        let _ = self.resizer.changed().read();
    }
}

impl AsRawFd for MemoryResize {
    /// Readable when the guest has plugged or unplugged memory.
    fn as_raw_fd(&self) -> RawFd {
        self.resizer.changed().as_raw_fd()
    }
}

/// The step of a failure to set the memory to `mib` MiB.
pub(super) fn step(mib: u64) -> String {
    format!("give the machine {mib} MiB of memory")
}
