//! Comparison of the guest's clock with the host's.
//!
//! The guest boots with the right time. Afterwards its clock runs at the rate of the host's hardware, while NTP adjusts the
//! host's clock, or it is set. The VMM therefore compares the clocks after the boot, every [`PERIOD`], and whenever the kernel
//! reports that the host's clock was set, which it also does after a suspend. The agent corrects a difference.
//!
//! A comparison reads the guest's clock through the agent. The reading belongs to an unknown moment between request and
//! reply, so a difference of less than half that span is no proof of a wrong clock and is ignored.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// Time between two comparisons. NTP adjusts a clock by up to 500 millionths, which makes at most 8 ms in this time.
const PERIOD: Duration = Duration::from_secs(16);

/// Most readings of a comparison. The one with the shortest span counts.
const MAX_READINGS: u32 = 8;

/// A reading with a span of at most this is precise enough to end the comparison.
const FAST: Duration = Duration::from_millis(2);

/// A reading with a longer span is imprecise: after a correction by it, the clocks are compared again soon.
const SLOW: Duration = Duration::from_millis(5);

/// Time to that comparison. It doubles up to [`PERIOD`] as long as readings are slow.
const MIN_PAUSE: Duration = Duration::from_secs(1);

/// Differences up to this, in nanoseconds, are not corrected.
const TOLERANCE_NS: u64 = 200_000;

/// A clock that differs by more than this, in nanoseconds, is set. For a smaller difference its rate is changed for a while,
/// so that it never runs backwards.
const STEP_NS: u64 = 20_000_000;

/// Expiration of the timer that only reports that the host's clock was set, in seconds since 1970.
const NEVER: i64 = 1 << 40;

/// State of the comparisons.
#[derive(Debug)]
pub(super) struct Clock {
    /// Readable after the host's clock was set.
    host: TimerFd,
    /// When the next comparison starts; `None` during one.
    due: Option<Instant>,
    /// The current comparison.
    comparison: Option<Comparison>,
    /// Number of comparisons so far.
    count: u64,
    /// Whether the next correction sets the clock, however small the difference is.
    set: bool,
    /// Time from the end of this comparison to the next one.
    pause: Duration,
}

#[derive(Debug)]
struct Comparison {
    /// Whether a correction sets the clock, however small the difference is.
    set: bool,
    readings_left: u32,
    best: Option<Difference>,
}

/// The result of one reading.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Difference {
    /// The host's time minus the guest's, in nanoseconds.
    offset_ns: i64,
    /// Time from the request to the reply.
    span: Duration,
}

/// A reading of the guest's clock that the agent was asked for.
#[derive(Debug)]
pub(super) struct ClockReading {
    /// The number of its comparison.
    comparison: u64,
    requested: Instant,
    /// The host's time at `requested`, in nanoseconds since 1970.
    host_ns: i64,
}

/// What follows from a reading.
#[derive(Debug)]
pub(super) enum Progress {
    /// The host's clock was set since the reading was requested, and a new comparison has started.
    Outdated,
    /// Another reading is needed.
    ReadAgain(ClockReading),
    /// The comparison is finished.
    Finished {
        /// The nanoseconds that the guest's clock lacks, and whether it is to be set instead of changing its rate. `None` if
        /// it is right.
        correction: Option<(i64, bool)>,
    },
}

impl ClockReading {
    fn new(comparison: u64) -> Self {
        Self { comparison, requested: Instant::now(), host_ns: host_time_ns() }
    }

    /// Assumes that the guest's clock was read in the middle between request and reply.
    fn difference(&self, guest_ns: i64, now: Instant) -> Difference {
        let span = now.saturating_duration_since(self.requested);
        let middle = self.host_ns.saturating_add(nanoseconds(span / 2));
        Difference { offset_ns: middle.saturating_sub(guest_ns), span }
    }
}

impl Difference {
    /// Whether the guest's clock is certainly wrong, and by more than [`TOLERANCE_NS`].
    fn is_certain(self) -> bool {
        self.offset_ns.unsigned_abs() > nanoseconds(self.span / 2).unsigned_abs() + TOLERANCE_NS
    }
}

impl Comparison {
    fn new(set: bool) -> Self {
        Self { set, readings_left: MAX_READINGS, best: None }
    }

    /// Records a reading. Returns true if no further one is needed.
    fn record(&mut self, difference: Difference) -> bool {
        if self.best.is_none_or(|best| difference.span < best.span) {
            self.best = Some(difference);
        }
        self.readings_left == 0 || difference.span <= FAST
    }

    /// The correction, as in [`Progress::Finished`].
    fn correction(&self) -> Option<(i64, bool)> {
        let best = self.best.filter(|best| best.is_certain())?;
        Some((best.offset_ns, self.set || best.offset_ns.unsigned_abs() > STEP_NS))
    }
}

impl Clock {
    /// No comparison is scheduled.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let host = TimerFd::new(ClockId::CLOCK_REALTIME, flags)?;
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        host.set(Expiration::OneShot(TimeSpec::new(NEVER, 0)), flags)?;
        Ok(Self { host, due: None, comparison: None, count: 0, set: false, pause: PERIOD })
    }

    /// When the next comparison is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Whether the next comparison is due.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// Whether comparisons have begun and were not stopped.
    pub(super) fn is_started(&self) -> bool {
        self.due.is_some() || self.comparison.is_some()
    }

    /// No further comparison is due.
    pub(super) fn stop(&mut self) {
        self.due = None;
    }

    /// The next correction sets the clock, however small the difference is.
    pub(super) fn request_set(&mut self) {
        (self.set, self.pause) = (true, MIN_PAUSE);
    }

    /// Starts a comparison, which replaces the current one. Returns its first reading.
    pub(super) fn start_comparison(&mut self) -> ClockReading {
        self.due = None;
        self.count += 1;
        self.comparison = Some(Comparison { readings_left: MAX_READINGS - 1, ..Comparison::new(self.set) });
        ClockReading::new(self.count)
    }

    /// Records a reading; `guest_ns` is `None` if the agent answered with something else.
    pub(super) fn on_reading(&mut self, reading: &ClockReading, guest_ns: Option<i64>, now: Instant) -> Progress {
        if reading.comparison != self.count {
            return Progress::Outdated;
        }
        let (Some(comparison), Some(guest_ns)) = (&mut self.comparison, guest_ns) else {
            return Progress::Finished { correction: None };
        };
        if comparison.record(reading.difference(guest_ns, now)) {
            return Progress::Finished { correction: comparison.correction() };
        }
        comparison.readings_left = comparison.readings_left.saturating_sub(1);
        Progress::ReadAgain(ClockReading::new(self.count))
    }

    /// Ends the comparison and schedules the next one.
    pub(super) fn end_comparison(&mut self, now: Instant) {
        let best = self.comparison.take().and_then(|comparison| comparison.best);
        if best.is_some_and(|best| best.span <= SLOW) || self.pause >= PERIOD {
            (self.set, self.pause) = (false, PERIOD);
        }
        self.due = Some(now + self.pause);
        self.pause = (2 * self.pause).min(PERIOD);
    }

    /// Clears the event that the host's clock was set.
    pub(super) fn clear_host_clock_event(&self) {
        // The read fails with ECANCELED, which clears the event.
        let _ = self.host.wait();
    }
}

impl AsRawFd for Clock {
    /// Readable after the host's clock was set.
    fn as_raw_fd(&self) -> RawFd {
        self.host.as_fd().as_raw_fd()
    }
}

fn host_time_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, nanoseconds)
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    fn difference(missing_ms: i64, span_ms: u64) -> Difference {
        Difference { offset_ns: missing_ms * MS, span: Duration::from_millis(span_ms) }
    }

    #[test]
    fn the_reading_is_assumed_in_the_middle_of_the_span() {
        let reading = ClockReading { host_ns: 1000 * MS, ..ClockReading::new(1) };
        let measured = reading.difference(900 * MS, reading.requested + Duration::from_millis(10));
        assert_eq!(measured, difference(105, 10));
    }

    #[test]
    fn the_fastest_reading_counts_and_a_fast_one_ends_the_comparison() {
        let mut comparison = Comparison::new(false);
        assert!(!comparison.record(difference(500, 100)));
        assert!(!comparison.record(difference(40, 10)));
        assert!(!comparison.record(difference(300, 50)));
        assert_eq!(comparison.correction(), Some((40 * MS, true)));
        assert!(comparison.record(difference(5, 1)));
        assert_eq!(comparison.correction(), Some((5 * MS, false)));
    }

    #[test]
    fn a_difference_within_half_the_span_is_not_corrected() {
        for (missing, span, corrected) in [(4, 10, false), (6, 10, true), (-4, 10, false), (-6, 10, true)] {
            let mut comparison = Comparison::new(true);
            comparison.record(difference(missing, span));
            assert_eq!(comparison.correction().is_some(), corrected, "{missing} in {span}");
        }
    }

    #[test]
    fn the_number_of_readings_is_bounded() {
        let mut comparison = Comparison::new(false);
        comparison.readings_left = 0;
        assert!(comparison.record(difference(0, 1000)));
        assert_eq!(comparison.correction(), None);
    }

    #[test]
    fn slow_readings_shorten_the_pause_before_the_next_comparison() {
        let now = Instant::now();
        let mut clock = Clock { set: true, pause: MIN_PAUSE, ..Clock::new().unwrap() };
        let mut next = |span: Duration| {
            let best = Some(Difference { offset_ns: 0, span });
            clock.comparison = Some(Comparison { best, ..Comparison::new(clock.set) });
            clock.end_comparison(now);
            (clock.due.unwrap() - now, clock.set)
        };
        assert_eq!([next(2 * SLOW), next(2 * SLOW)], [(MIN_PAUSE, true), (2 * MIN_PAUSE, true)]);
        assert_eq!([next(SLOW), next(2 * SLOW)], [(PERIOD, false), (PERIOD, false)]);
    }

    #[test]
    fn extreme_times_of_a_hostile_guest_do_not_overflow() {
        for guest_ns in [i64::MIN, i64::MAX, 0] {
            let reading = ClockReading::new(1);
            let measured = reading.difference(guest_ns, reading.requested);
            let mut comparison = Comparison::new(true);
            comparison.record(measured);
            assert!(comparison.correction().is_some());
        }
    }
}
