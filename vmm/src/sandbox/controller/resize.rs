//! Changes of the machine's memory and vCPUs.

use std::time::Instant;

use agent::{Failure, FailureKind};

use super::{Controller, Purpose};
use crate::control::Reply;
use crate::sandbox::clients::Caller;
use crate::sandbox::failures::failure;
use crate::sandbox::memory_resize;

impl Controller {
    /// Starts a change of the memory to `mib` MiB. Returns the failure if that is not possible.
    pub(super) fn set_memory(&mut self, caller: Caller, mib: u64) -> Option<Result<Reply, Failure>> {
        if let Some(failure) = &self.closed {
            return Some(Err(failure.clone()));
        }
        let step = memory_resize::step(mib);
        if self.memory_resize.has_waiter() {
            return Some(Err(failure(FailureKind::WrongState, step, "it is being resized already")));
        }
        let started = self.memory_resize.start(Some(caller), mib, Instant::now());
        started.err().map(|error| Err(failure(FailureKind::System, step, crate::chain(&error))))
    }

    /// Answers the client that changes the memory, when the change is finished.
    pub(super) fn answer_finished_resize(&mut self, now: Instant) {
        if let Some((caller, result)) = self.memory_resize.take_result(now) {
            match (caller, result) {
                (Some(caller), result) => self.clients.answer(caller, result),
                (None, Err(failure)) => tracing::warn!("the machine does not get all of its memory: {failure}"),
                (None, Ok(_)) => {}
            }
            let request = agent::Request::SetPluggedMemory { plugged: self.memory_resize.plugged() };
            self.call_agent(request, "let containers use the machine's memory".to_owned(), Purpose::Internal);
            self.run_delayed_starts();
        }
    }

    /// Gives the guest the memory that it has in addition to its template's.
    pub(super) fn add_memory(&mut self, mib: u64) {
        if !self.memory_resize.is_smaller_than(mib) {
            return;
        }
        if let Err(error) = self.memory_resize.start(None, mib, Instant::now()) {
            tracing::warn!("the machine does not get all of its memory: {}", crate::chain(&error));
        }
    }

    /// Makes the guest use the vCPUs that it boots with. The kernel brings up only the first one.
    pub(super) fn request_boot_vcpus(&mut self) {
        if self.vcpus.count() > 1 {
            let (request, step) = use_vcpus(self.vcpus.count());
            self.call_agent_without_timeout(request, step, Purpose::Internal);
        }
    }

    /// Makes the guest use `count` vCPUs, creating those that do not exist. Returns the failure if that is not possible.
    pub(super) fn set_vcpus(&mut self, caller: Caller, count: u8) -> Option<Result<Reply, Failure>> {
        let (request, step) = use_vcpus(count);
        if !(1..=self.vcpus.max_count()).contains(&count) {
            let cause = format!("this machine can have 1 to {} vCPUs", self.vcpus.max_count());
            return Some(Err(failure(FailureKind::System, step, cause)));
        }
        if let Err(error) = self.vcpus.grow(count) {
            return Some(Err(failure(FailureKind::System, step, crate::chain(&error))));
        }
        self.call_agent(request, step, Purpose::Other(caller));
        None
    }
}

fn use_vcpus(count: u8) -> (agent::Request, String) {
    (agent::Request::SetCpus { count: count.into() }, format!("have the guest use {count} vCPUs"))
}
