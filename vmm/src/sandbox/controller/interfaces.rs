//! Runs the runtime when the interfaces of the sandbox's network namespace have changed.

use std::time::Instant;

use event_manager::EventOps;

use super::Controller;
use super::watches::token;

impl Controller {
    /// Called before the main container starts.
    pub(super) fn start_interface_monitor(&mut self) {
        if let Err(error) = self.interface_monitor.start() {
            tracing::warn!(%error, "cannot monitor network interfaces");
        }
    }

    /// Runs the runtime if it is due, and watches new descriptors of the monitor.
    pub(super) fn run_interface_monitor(&mut self, ops: &mut EventOps) {
        if let Err(error) = self.interface_monitor.watch_changes(token::INTERFACE_CHANGES, ops) {
            tracing::warn!(%error, "cannot watch for new network interfaces");
        }
        if self.interface_monitor.is_due(Instant::now())
            && self.closed.is_none()
            && let Err(error) = self.interface_monitor.run_command()
        {
            tracing::warn!(%error, "cannot run the runtime for a change of network interfaces");
        }
        if let Err(error) = self.interface_monitor.watch_child(token::INTERFACE_COMMAND, ops) {
            tracing::warn!(%error, "cannot watch the runtime");
        }
    }

    /// The runtime ended. Its output says why it failed.
    pub(super) fn reap_interface_command(&mut self, ops: &mut EventOps) {
        let Some(child) = self.interface_monitor.take_child() else { return };
        match child.reap(ops) {
            Ok((status, _)) if status.success() => self.interface_monitor.reset_delay(),
            Ok((_, output)) => {
                self.interface_monitor.double_delay();
                tracing::warn!("cannot apply a change of network interfaces to the guest: {}", output.trim_end());
            }
            Err(error) => {
                tracing::warn!(%error, "cannot determine whether a change of network interfaces was applied");
            }
        }
    }
}
