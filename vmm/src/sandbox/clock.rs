//! Keeps the guest's time of day with the host's.
//!
//! The guest boots with the right time, and its clock then runs as the host's hardware does: the host's time of day is steered
//! (by NTP) or set, the guest's is not. So the VMM compares the two at the start, every [`PERIOD`], and whenever the kernel says
//! that the host's time was set, which it also does when the host wakes from suspend. The agent corrects a difference.
//!
//! A comparison is a question to the agent, which answers with the guest's time. The answer belongs to some moment between
//! question and answer, so a difference below half of that span shows nothing, and is left alone.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent::{Request, Response};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::{Purpose, Sandbox};

/// How often the clocks are compared. NTP steers a clock by up to 500 millionths, so they part by 8 ms in it at most.
const PERIOD: Duration = Duration::from_secs(16);

/// Questions a comparison may take. The one whose answer came fastest counts.
const QUESTIONS: u32 = 8;

/// An answer that came this fast needs no further question.
const FAST: Duration = Duration::from_millis(2);

/// An answer that took longer leaves too much open: after a correction by it, the clocks are compared again soon.
const SLOW: Duration = Duration::from_millis(5);

/// How soon; the time doubles up to [`PERIOD`] as long as answers are slow.
const SOON: Duration = Duration::from_secs(1);

/// Differences that are not worth a correction.
const TOLERANCE_NS: u64 = 200_000;

/// A clock that differs by more is set; one that differs by less is slowed or sped up, so that it never goes backwards.
const STEP_NS: u64 = 20_000_000;

/// How far in the future the timer is that waits for the host's time to be set, in seconds.
const NEVER: i64 = 1 << 40;

/// The guest's clock, as the VMM watches it.
#[derive(Debug)]
pub(super) struct Clock {
    /// Readable when the host's time was set.
    host: TimerFd,
    /// When the clocks are compared next, unless they are being compared.
    due: Option<Instant>,
    /// The comparison under way.
    comparison: Option<Comparison>,
    /// How many comparisons there have been.
    count: u64,
    /// Whether the guest's clock is set at once, however little it differs.
    set: bool,
    /// Time from the end of this comparison to the next one.
    pause: Duration,
}

#[derive(Debug)]
struct Comparison {
    /// Whether the guest's clock is set however little it differs.
    set: bool,
    questions_left: u32,
    best: Option<Difference>,
}

/// What one answer tells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Difference {
    /// What the guest's clock lacks, in nanoseconds.
    missing_ns: i64,
    /// Time from the question to the answer.
    span: Duration,
}

/// A question that was asked.
#[derive(Debug)]
pub(super) struct Question {
    /// The number of the comparison that it belongs to.
    comparison: u64,
    asked: Instant,
    /// The host's time then, in nanoseconds since 1970.
    host_ns: i64,
}

impl Question {
    fn new(comparison: u64) -> Self {
        Self { comparison, asked: Instant::now(), host_ns: host_time_ns() }
    }

    /// The guest's time is taken for that of the middle between question and answer.
    fn answered(&self, guest_ns: i64, now: Instant) -> Difference {
        let span = now.saturating_duration_since(self.asked);
        let middle = self.host_ns.saturating_add(nanoseconds(span / 2));
        Difference { missing_ns: middle.saturating_sub(guest_ns), span }
    }
}

impl Difference {
    /// Whether the guest's clock is wrong for certain, and by enough to correct it.
    fn is_certain(self) -> bool {
        self.missing_ns.unsigned_abs() > nanoseconds(self.span / 2).unsigned_abs() + TOLERANCE_NS
    }
}

impl Comparison {
    fn new(set: bool) -> Self {
        Self { set, questions_left: QUESTIONS, best: None }
    }

    /// Notes an answer. True when no further question is needed.
    fn note(&mut self, difference: Difference) -> bool {
        if self.best.is_none_or(|best| difference.span < best.span) {
            self.best = Some(difference);
        }
        self.questions_left == 0 || difference.span <= FAST
    }

    /// The correction that the guest's clock needs, and whether it is set at once.
    fn correction(&self) -> Option<(i64, bool)> {
        let best = self.best.filter(|best| best.is_certain())?;
        Some((best.missing_ns, self.set || best.missing_ns.unsigned_abs() > STEP_NS))
    }
}

impl Clock {
    /// # Errors
    /// There is no descriptor left.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let host = TimerFd::new(ClockId::CLOCK_REALTIME, flags)?;
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        host.set(Expiration::OneShot(TimeSpec::new(NEVER, 0)), flags)?;
        Ok(Self { host, due: None, comparison: None, count: 0, set: false, pause: PERIOD })
    }

    /// When there is something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Ends the comparison, and decides on the next one.
    fn end_comparison(&mut self, now: Instant) {
        let best = self.comparison.take().and_then(|comparison| comparison.best);
        if best.is_some_and(|best| best.span <= SLOW) || self.pause >= PERIOD {
            (self.set, self.pause) = (false, PERIOD);
        }
        self.due = Some(now + self.pause);
        self.pause = (2 * self.pause).min(PERIOD);
    }
}

impl AsRawFd for Clock {
    /// Readable when the host's time was set.
    fn as_raw_fd(&self) -> RawFd {
        self.host.as_fd().as_raw_fd()
    }
}

impl Sandbox {
    /// Compares the clocks and sets the guest's: at the start, and after the host's was set.
    pub(super) fn set_clock(&mut self) {
        (self.clock.set, self.clock.pause) = (true, SOON);
        self.compare_clocks();
    }

    fn compare_clocks(&mut self) {
        self.clock.due = None;
        self.clock.count += 1;
        self.clock.comparison = Some(Comparison::new(self.clock.set));
        self.ask_clock();
    }

    fn ask_clock(&mut self) {
        if let Some(comparison) = &mut self.clock.comparison {
            comparison.questions_left = comparison.questions_left.saturating_sub(1);
            let question = Question::new(self.clock.count);
            self.ask(Request::ReadClock, "read the guest's clock".to_owned(), Purpose::ReadClock(question));
        }
    }

    /// The agent has told the guest's time.
    pub(super) fn hear_clock(&mut self, question: &Question, response: &Response) {
        if question.comparison != self.clock.count {
            // The host's time was set since the question.
            return;
        }
        let (Some(comparison), Response::Clock { guest_ns }) = (&mut self.clock.comparison, response) else {
            return self.end_comparison();
        };
        if !comparison.note(question.answered(*guest_ns, Instant::now())) {
            return self.ask_clock();
        }
        if let Some((missing_ns, set)) = comparison.correction() {
            tracing::debug!(missing_ns, set, "the guest's clock is corrected");
            let request = Request::AdjustClock { missing_ns, set };
            self.ask(request, "correct the guest's clock".to_owned(), Purpose::Own);
        }
        self.end_comparison();
    }

    /// The next comparison comes in its time, also where this one has failed.
    pub(super) fn end_comparison(&mut self) {
        self.clock.end_comparison(Instant::now());
    }

    /// The host's time was set.
    pub(super) fn hear_host_clock(&mut self) {
        // The error that reading gives says so; it also makes the timer quiet.
        let _ = self.clock.host.wait();
        if self.lost.is_none() && (self.clock.due.is_some() || self.clock.comparison.is_some()) {
            self.set_clock();
        }
    }

    /// Compares the clocks if it is time.
    pub(super) fn settle_clock(&mut self, now: Instant) {
        if self.lost.is_some() {
            self.clock.due = None;
        } else if self.clock.due.is_some_and(|due| due <= now) {
            self.compare_clocks();
        }
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
        Difference { missing_ns: missing_ms * MS, span: Duration::from_millis(span_ms) }
    }

    #[test]
    fn the_guests_time_is_that_of_the_middle() {
        let question = Question { host_ns: 1000 * MS, ..Question::new(1) };
        let answered = question.answered(900 * MS, question.asked + Duration::from_millis(10));
        assert_eq!(answered, difference(105, 10));
    }

    #[test]
    fn the_fastest_answer_counts_and_a_fast_one_is_enough() {
        let mut comparison = Comparison::new(false);
        assert!(!comparison.note(difference(500, 100)));
        assert!(!comparison.note(difference(40, 10)));
        assert!(!comparison.note(difference(300, 50)));
        assert_eq!(comparison.correction(), Some((40 * MS, true)));
        assert!(comparison.note(difference(5, 1)));
        assert_eq!(comparison.correction(), Some((5 * MS, false)));
    }

    #[test]
    fn what_the_span_may_explain_is_left_alone() {
        for (missing, span, corrected) in [(4, 10, false), (6, 10, true), (-4, 10, false), (-6, 10, true)] {
            let mut comparison = Comparison::new(true);
            comparison.note(difference(missing, span));
            assert_eq!(comparison.correction().is_some(), corrected, "{missing} in {span}");
        }
    }

    #[test]
    fn a_guest_that_never_answers_fast_is_not_asked_for_ever() {
        let mut comparison = Comparison::new(false);
        comparison.questions_left = 0;
        assert!(comparison.note(difference(0, 1000)));
        assert_eq!(comparison.correction(), None);
    }

    #[test]
    fn slow_answers_bring_the_next_comparison_nearer_for_a_while() {
        let now = Instant::now();
        let mut clock = Clock { set: true, pause: SOON, ..Clock::new().unwrap() };
        let mut next = |span: Duration| {
            let best = Some(Difference { missing_ns: 0, span });
            clock.comparison = Some(Comparison { best, ..Comparison::new(clock.set) });
            clock.end_comparison(now);
            (clock.due.unwrap() - now, clock.set)
        };
        assert_eq!([next(2 * SLOW), next(2 * SLOW)], [(SOON, true), (2 * SOON, true)]);
        assert_eq!([next(SLOW), next(2 * SLOW)], [(PERIOD, false), (PERIOD, false)]);
    }

    #[test]
    fn numbers_of_a_hostile_guest_do_no_harm() {
        for guest_ns in [i64::MIN, i64::MAX, 0] {
            let question = Question::new(1);
            let answered = question.answered(guest_ns, question.asked);
            let mut comparison = Comparison::new(true);
            comparison.note(answered);
            assert!(comparison.correction().is_some());
        }
    }
}
