//! Results of the helper's tasks.

use event_manager::{EventOps, Events};

use super::Controller;
use crate::helper::Task;

impl Controller {
    /// Handles the results of finished tasks. The end of the helper ends nothing else.
    pub(super) fn read_helper(&mut self, ops: &mut EventOps) {
        loop {
            match self.helper.next_result() {
                Ok(Some(result)) => match result.task {
                    Task::CountOomKill => tracing::debug!(counted = result.is_done, "the helper reported an OOM kill"),
                    Task::UpdateInterfaces => self.on_interfaces_updated(result.is_done),
                },
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "the helper has ended: OOM kills and new interfaces are not reported");
                    let events = Events::empty_raw(std::os::fd::AsRawFd::as_raw_fd(&self.helper));
                    if let Err(error) = ops.remove(events) {
                        tracing::debug!(%error, "cannot stop watching the helper");
                    }
                    return;
                }
            }
        }
    }
}
