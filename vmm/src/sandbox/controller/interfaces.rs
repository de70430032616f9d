//! Has the helper run the runtime when the interfaces of the sandbox's network namespace have changed.

use std::time::Instant;

use event_manager::EventOps;

use super::Controller;
use super::watches::token;
use crate::helper::Task;

impl Controller {
    /// Has the runtime run if it is due, and watches for changes once the main container was started.
    pub(super) fn run_interface_monitor(&mut self, ops: &mut EventOps) {
        if self.is_started
            && let Err(error) = self.interface_monitor.watch(token::INTERFACE_CHANGES, ops)
        {
            tracing::warn!(%error, "cannot watch for new network interfaces");
        }
        let is_due = self.interface_monitor.is_due(Instant::now());
        if is_due && self.closed.is_none() && !self.helper.is_running(Task::UpdateInterfaces) {
            self.interface_monitor.clear_due();
            if let Err(error) = self.helper.start(Task::UpdateInterfaces) {
                tracing::warn!(%error, "cannot apply a change of network interfaces to the guest");
            }
        }
    }

    /// The time at which the runtime has to be run; `None` while it runs.
    pub(super) fn interface_deadline(&self) -> Option<Instant> {
        let may_run = self.closed.is_none() && !self.helper.is_running(Task::UpdateInterfaces);
        self.interface_monitor.deadline().filter(|_| may_run)
    }

    /// The runtime ended.
    pub(super) fn on_interfaces_updated(&mut self, is_done: bool) {
        match is_done {
            true => self.interface_monitor.reset_delay(),
            false => self.interface_monitor.double_delay(),
        }
    }
}
