//! Reports OOM kills of the guest to clients and to the host.

use super::Controller;
use crate::control::Reply;
use crate::helper::Task;
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
            self.count_oom_kill();
        }
        let (callers, count) = self.oom_kills.record(container);
        for caller in callers {
            self.clients.answer(caller, Ok(Reply::OutOfMemory(count)));
        }
    }

    /// The VMM is in the cgroup of the main container only, so only its OOM kills are reported to the host. OOM kills in quick
    /// succession are counted as one, as the agent does.
    fn count_oom_kill(&mut self) {
        if self.has_cgroup
            && let Err(error) = self.helper.start(Task::CountOomKill)
        {
            tracing::warn!(%error, "cannot report an OOM kill to the host");
        }
    }
}
