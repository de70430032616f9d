//! Has the host count a death for want of memory in the guest, see [`crate::victim`].

use std::ffi::OsString;
use std::io;
use std::process::Command;

use event_manager::EventOps;

use super::helper::Helper;
use super::{MIRROR, Sandbox};
use crate::victim;

/// The victim on the host, while there is one.
#[derive(Debug)]
pub(super) struct Mirror {
    program: Option<OsString>,
    victim: Option<Helper>,
}

impl Mirror {
    /// One whose victims run `program`, which is `vmrt-vmm`; without one, nothing is counted.
    pub(super) fn new(program: Option<OsString>) -> Self {
        Self { program, victim: None }
    }

    /// Whether the host has not counted yet.
    pub(super) fn is_busy(&self) -> bool {
        self.victim.is_some()
    }

    /// Begins to have a death counted. Deaths that happen meanwhile are one with it, as they are for the guest's agent.
    fn begin(&mut self) -> io::Result<()> {
        if let (None, Some(program)) = (&self.victim, &self.program) {
            let mut command = Command::new(program);
            command.arg(victim::ARGUMENT);
            self.victim = Some(Helper::spawn(command)?);
        }
        Ok(())
    }
}

impl Sandbox {
    /// Has the host count a death in the main container, whose cgroup the VMM's is.
    pub(super) fn mirror_death(&mut self) {
        if let Err(error) = self.mirror.begin() {
            tracing::warn!(%error, "cannot have the host count a death for want of memory");
        }
    }

    /// Watches a new victim.
    pub(super) fn watch_victim(&mut self, ops: &mut EventOps) {
        let Some(victim) = &mut self.mirror.victim else { return };
        if let Err(error) = victim.watch(MIRROR, ops) {
            tracing::warn!(%error, "cannot watch the victim of a want of memory");
            self.mirror.victim.take().into_iter().for_each(Helper::abandon);
        }
    }

    /// The victim is dead, or about to be.
    pub(super) fn bury_victim(&mut self, ops: &mut EventOps) {
        let Some(victim) = self.mirror.victim.take() else { return };
        match victim.bury(ops) {
            Ok((status, words)) if words.is_empty() => {
                tracing::debug!(%status, "the host counted a death for want of memory");
            }
            Ok((_, words)) => tracing::warn!("the host did not count a death for want of memory: {}", words.trim_end()),
            Err(error) => tracing::warn!(%error, "cannot tell whether the host counted a death for want of memory"),
        }
    }
}
