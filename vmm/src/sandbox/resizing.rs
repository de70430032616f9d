//! Giving the machine more memory or vCPUs, or taking some away, for a client who waits for it.

use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use agent::{Failure, FailureKind};

use super::clients::Caller;
use super::{Purpose, Sandbox, failure};
use crate::control::Reply;
use crate::mem::{ResizeError, Resizer};

const MIB: u64 = 1 << 20;

/// How long a guest may take over the next block of memory that it is given.
const GROWTH_DEADLINE: Duration = Duration::from_secs(10);

/// How long a guest may take to give the next block back: where it cannot, it does not say so.
const SHRINK_DEADLINE: Duration = Duration::from_secs(3);

/// The machine's memory, and who waits for it.
#[derive(Debug)]
pub(super) struct Resizing {
    resizer: Resizer,
    pending: Option<Pending>,
}

/// A client's request that the guest is at work on.
#[derive(Debug)]
struct Pending {
    caller: Caller,
    target: u64,
    growing: bool,
    /// The size that came nearest to the target. To go back and forth does not gain time.
    nearest: u64,
    deadline: Instant,
}

impl Pending {
    fn patience(&self) -> Duration {
        if self.growing { GROWTH_DEADLINE } else { SHRINK_DEADLINE }
    }

    /// Notes how far the guest is.
    fn advance(&mut self, size: u64, now: Instant) {
        if size.abs_diff(self.target) < self.nearest.abs_diff(self.target) {
            self.nearest = size;
            self.deadline = now + self.patience();
        }
    }
}

impl Resizing {
    pub(super) fn new(resizer: Resizer) -> Self {
        Self { resizer, pending: None }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.pending.as_ref().map(|pending| pending.deadline)
    }

    /// Whoever will never hear of it.
    pub(super) fn abandon(&mut self) -> Option<Caller> {
        self.pending.take().map(|pending| pending.caller)
    }

    /// Asks the guest to have `size` bytes.
    fn begin(&mut self, caller: Caller, size: u64, now: Instant) -> Result<(), ResizeError> {
        let before = self.resizer.size();
        let target = self.resizer.request(size)?;
        let mut pending = Pending { caller, target, growing: target > before, nearest: before, deadline: now };
        pending.deadline += pending.patience();
        self.pending = Some(pending);
        Ok(())
    }

    /// The answer, once there is one: the guest has the size, or does not come nearer to it.
    fn outcome(&mut self, now: Instant) -> Option<(Caller, Result<Reply, Failure>)> {
        let size = self.resizer.size();
        let pending = self.pending.as_mut()?;
        pending.advance(size, now);
        if size != pending.target && now < pending.deadline {
            return None;
        }
        let Pending { caller, target, growing, .. } = self.pending.take()?;
        if size == target {
            return Some((caller, Ok(Reply::Memory(size / MIB))));
        }
        if let Err(error) = self.resizer.settle() {
            tracing::error!(%error, "cannot have the guest leave its memory as it is");
        }
        let cause = format!("the guest got to {} MiB and no further within {GROWTH_DEADLINE:?}", size / MIB);
        let step = step(target / MIB);
        Some((
            caller,
            if growing { Err(failure(FailureKind::Timeout, step, cause)) } else { Ok(Reply::Memory(size / MIB)) },
        ))
    }
}

impl AsRawFd for Resizing {
    /// Readable when the guest has taken or given back memory.
    fn as_raw_fd(&self) -> RawFd {
        self.resizer.changed().as_raw_fd()
    }
}

impl Sandbox {
    pub(super) fn set_memory(&mut self, caller: Caller, mib: u64) -> Option<Result<Reply, Failure>> {
        if let Some(failure) = &self.lost {
            return Some(Err(failure.clone()));
        }
        if self.resizing.pending.is_some() {
            return Some(Err(failure(FailureKind::WrongState, step(mib), "it is being resized already")));
        }
        let begun = self.resizing.begin(caller, mib.saturating_mul(MIB), Instant::now());
        begun.err().map(|error| Err(failure(FailureKind::System, step(mib), crate::chain(&error))))
    }

    /// Has the guest use the vCPUs that it boots with. It uses one until it is told to.
    pub(super) fn use_vcpus(&mut self) {
        if self.vcpus.count() > 1 {
            let (request, step) = use_vcpus(self.vcpus.count());
            self.ask_patiently(request, step, Purpose::Own);
        }
    }

    pub(super) fn set_vcpus(&mut self, caller: Caller, count: u8) -> Option<Result<Reply, Failure>> {
        let (request, step) = use_vcpus(count);
        if !(1..=self.vcpus.most()).contains(&count) {
            let cause = format!("this machine can have 1 to {} vCPUs", self.vcpus.most());
            return Some(Err(failure(FailureKind::System, step, cause)));
        }
        if let Err(error) = self.vcpus.grow(count) {
            return Some(Err(failure(FailureKind::System, step, crate::chain(&error))));
        }
        self.ask(request, step, Purpose::Other(caller));
        None
    }

    /// The guest has taken or given back memory; what follows from it is settled with all else.
    pub(super) fn hear_memory(&mut self) {
        // Nothing to read means that somebody has read it.
        let _ = self.resizing.resizer.changed().read();
    }

    /// Answers who waits for memory, if it is time for it.
    pub(super) fn settle_resizing(&mut self, now: Instant) {
        if let Some((caller, result)) = self.resizing.outcome(now) {
            self.clients.answer(caller, result);
            let request = agent::Request::FollowMemory { plugged: self.resizing.resizer.plugged() };
            self.ask(request, "let containers use the machine's memory".to_owned(), Purpose::Own);
        }
    }
}

fn use_vcpus(count: u8) -> (agent::Request, String) {
    (agent::Request::SetCpus { count: count.into() }, format!("have the guest use {count} vCPUs"))
}

fn step(mib: u64) -> String {
    format!("give the machine {mib} MiB of memory")
}
