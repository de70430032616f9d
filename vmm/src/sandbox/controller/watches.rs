//! The descriptors that the event loop watches for the controller, and the timer of its deadlines.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{Expiration, TimerSetTimeFlags};

use super::Controller;

/// Tokens of the watched descriptors. Tokens from [`crate::sandbox::clients::FIRST_CLIENT_TOKEN`] on are clients.
pub(super) mod token {
    pub(in super::super) const LISTENER: u32 = 0;
    pub(in super::super) const AGENT: u32 = 1;
    pub(in super::super) const TIMER: u32 = 2;
    pub(in super::super) const SIGNALS: u32 = 3;
    pub(in super::super) const MACHINE: u32 = 4;
    pub(in super::super) const DRAINED: u32 = 5;
    pub(in super::super) const HELPER: u32 = 6;
    pub(in super::super) const INTERFACE_CHANGES: u32 = 7;
    pub(in super::super) const MEMORY: u32 = 8;
    pub(in super::super) const HOST_CLOCK: u32 = 9;
}

impl Controller {
    fn watched_fds(&self) -> [(u32, RawFd); 9] {
        [
            (token::LISTENER, self.listener.as_raw_fd()),
            (token::AGENT, self.agent.as_fd().as_raw_fd()),
            (token::TIMER, self.timer.as_fd().as_raw_fd()),
            (token::SIGNALS, self.signals.as_fd().as_raw_fd()),
            (token::MACHINE, self.machine.as_raw_fd()),
            (token::DRAINED, self.ports.drained().as_raw_fd()),
            (token::HELPER, self.helper.as_raw_fd()),
            (token::MEMORY, self.memory_resize.as_raw_fd()),
            (token::HOST_CLOCK, self.clock.as_raw_fd()),
        ]
    }

    /// Watches the descriptors that exist from the start.
    pub(super) fn add_watches(&mut self, ops: &mut EventOps) {
        for (token, fd) in self.watched_fds() {
            // A machine ends once, and its descriptor stays readable.
            let once = if token == token::MACHINE { EventSet::ONE_SHOT } else { EventSet::empty() };
            if let Err(error) = ops.add(Events::with_data_raw(fd, token, EventSet::IN | once)) {
                self.fail_guest("watch the sandbox's descriptors", &error);
            }
        }
    }

    /// Watches the agent's connection for writability only while requests are queued.
    pub(super) fn update_agent_watch(&mut self, ops: &mut EventOps) {
        let wanted = match (self.closed.is_some(), self.agent.has_unsent()) {
            // A closed connection stays readable.
            (true, _) => EventSet::empty(),
            (false, true) => EventSet::IN | EventSet::OUT,
            (false, false) => EventSet::IN,
        };
        if wanted != self.agent_watched {
            let fd = self.agent.as_fd().as_raw_fd();
            let events = Events::with_data_raw(fd, token::AGENT, wanted);
            let result = if wanted.is_empty() { ops.remove(events) } else { ops.modify(events) };
            self.agent_watched = wanted;
            if let Err(error) = result {
                tracing::error!(%error, "cannot watch the agent's connection");
            }
        }
    }

    /// Sets the timer to the earliest deadline.
    pub(super) fn arm_timer(&mut self) {
        let is_open = self.closed.is_none();
        let deadlines = [
            self.agent.deadline().filter(|_| is_open),
            self.ending.deadline(),
            self.interface_deadline(),
            self.memory_resize.deadline(),
            self.clock.deadline(),
        ];
        let deadline = deadlines.into_iter().flatten().min();
        if deadline == self.armed {
            return;
        }
        let result = match deadline {
            None => self.timer.unset(),
            Some(deadline) => {
                // A value of zero would disarm the timer.
                let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_micros(1));
                self.timer.set(Expiration::OneShot(TimeSpec::from(left)), TimerSetTimeFlags::empty())
            }
        };
        match result {
            Ok(()) => self.armed = deadline,
            Err(error) => tracing::error!(%error, "cannot set the timer of the deadlines"),
        }
    }

    /// A deadline has passed. Only those of the agent are handled here; [`Controller::finish_event`] handles the others.
    pub(super) fn on_timer(&mut self) {
        self.armed = None;
        // Reading makes the descriptor unreadable again. The number of expirations is not needed.
        let _ = self.timer.wait();
        if self.closed.is_some() {
            return;
        }
        match self.agent.take_expired(Instant::now()) {
            Ok(expired) => expired.into_iter().for_each(|(purpose, failure)| self.on_failure(purpose, failure)),
            Err(error) => self.fail_guest("boot the guest", &error),
        }
    }
}
