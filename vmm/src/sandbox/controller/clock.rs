//! Compares the guest's clock with the host's, and corrects it.

use std::time::Instant;

use agent::{Request, Response};

use super::{Controller, Purpose};
use crate::sandbox::clock::{ClockReading, Progress};

impl Controller {
    /// Compares the clocks and sets the guest's: after the boot, and after the host's clock was set.
    pub(super) fn set_guest_clock(&mut self) {
        self.clock.request_set();
        self.start_clock_comparison();
    }

    /// Compares the clocks if it is due.
    pub(super) fn compare_clocks_if_due(&mut self, now: Instant) {
        if self.closed.is_some() {
            self.clock.stop();
        } else if self.clock.is_due(now) {
            self.start_clock_comparison();
        }
    }

    fn start_clock_comparison(&mut self) {
        let reading = self.clock.start_comparison();
        self.read_guest_clock(reading);
    }

    fn read_guest_clock(&mut self, reading: ClockReading) {
        self.call_agent(Request::ReadClock, "read the guest's clock".to_owned(), Purpose::ReadClock(reading));
    }

    /// The agent answered a reading.
    pub(super) fn on_clock_reading(&mut self, reading: &ClockReading, response: &Response) {
        let guest_ns = if let Response::Clock { guest_ns } = response { Some(*guest_ns) } else { None };
        match self.clock.on_reading(reading, guest_ns, Instant::now()) {
            Progress::Outdated => {}
            Progress::ReadAgain(reading) => self.read_guest_clock(reading),
            Progress::Finished { correction: None } => self.end_clock_comparison(),
            Progress::Finished { correction: Some((offset_ns, set)) } => {
                tracing::debug!(offset_ns, set, "the guest's clock is corrected");
                let request = Request::AdjustClock { offset_ns, set };
                self.call_agent(request, "correct the guest's clock".to_owned(), Purpose::Internal);
                self.end_clock_comparison();
            }
        }
    }

    /// Ends the comparison, also if it failed, and schedules the next one.
    pub(super) fn end_clock_comparison(&mut self) {
        self.clock.end_comparison(Instant::now());
    }

    /// The host's clock was set.
    pub(super) fn on_host_clock_set(&mut self) {
        self.clock.clear_host_clock_event();
        if self.closed.is_none() && self.clock.is_started() {
            self.set_guest_clock();
        }
    }
}
