//! Reports OOM kills of the guest to clients and to the host.

use event_manager::EventOps;

use super::Controller;
use super::watches::token;
use crate::control::Reply;
use crate::sandbox::containers::first_process;

impl Controller {
    /// The guest reported an OOM kill. A hostile guest may name a container that does not exist. Its report is dropped, so names have
    /// the bounds that requests of clients have.
    pub(super) fn on_oom_kill(&mut self, container: &str) {
        if self.processes.status(&first_process(container)).is_none() {
            return;
        }
        tracing::info!(container, "the guest's kernel killed a process of a container: out of memory");
        if container == self.main.container {
            self.start_oom_notifier();
        }
        let (callers, count) = self.oom_kills.record(container);
        for caller in callers {
            self.clients.answer(caller, Ok(Reply::OutOfMemory(count)));
        }
    }

    /// The VMM is in the cgroup of the main container only, so only its OOM kills are reported to the host.
    fn start_oom_notifier(&mut self) {
        if let Err(error) = self.oom_notifier.start() {
            tracing::warn!(%error, "cannot report an OOM kill to the host");
        }
    }

    /// Watches the OOM notifier if it was just started.
    pub(super) fn watch_oom_notifier(&mut self, ops: &mut EventOps) {
        if let Err(error) = self.oom_notifier.watch(token::OOM_NOTIFIER, ops) {
            tracing::warn!(%error, "cannot watch the OOM notifier");
        }
    }

    /// The OOM notifier ended. It writes to its output only if the kernel did not kill it.
    pub(super) fn reap_oom_notifier(&mut self, ops: &mut EventOps) {
        let Some(child) = self.oom_notifier.take() else { return };
        match child.reap(ops) {
            Ok((status, output)) if output.is_empty() => {
                tracing::debug!(%status, "the host counted an OOM kill");
            }
            Ok((_, output)) => tracing::warn!("the host did not count an OOM kill: {}", output.trim_end()),
            Err(error) => tracing::warn!(%error, "cannot determine whether the host counted an OOM kill"),
        }
    }
}
