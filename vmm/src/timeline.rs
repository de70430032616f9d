//! The times at which the stages of the sandbox's start were reached. Each process has one timeline.

use std::sync::{Mutex, MutexGuard, PoisonError};

use agent::Hello;
use nix::time::{ClockId, clock_gettime};

use crate::control::Stage;

/// Most stages that are recorded. A start has about fifteen, and further containers of a sandbox add theirs.
const MAX_STAGES: usize = 64;

static TIMELINE: Mutex<Timeline> = Mutex::new(Timeline(Vec::new()));

/// Stages in the order in which they were recorded.
struct Timeline(Vec<Stage>);

impl Timeline {
    fn mark(&mut self, name: &str, at_ns: u64) {
        if self.0.len() < MAX_STAGES {
            self.0.push(Stage { name: name.to_owned(), at_ns });
        }
    }

    fn sorted(&self) -> Vec<Stage> {
        let mut stages = self.0.clone();
        stages.sort_by_key(|stage| stage.at_ns);
        stages
    }
}

/// Records that the stage `name` was reached now.
pub fn mark(name: &str) {
    mark_at(name, now_ns());
}

/// Records the stages of the guest. `hello` has just arrived, and its times are nanoseconds since the start of the guest's
/// kernel.
pub fn mark_guest(hello: &Hello) {
    guest_stages(hello, now_ns()).into_iter().for_each(|(name, at_ns)| mark_at(name, at_ns));
}

/// The guest's stages on the host's clock, in nanoseconds. A hostile guest cannot set times after `now`.
fn guest_stages(hello: &Hello, now: u64) -> [(&'static str, u64); 3] {
    let kernel = now.saturating_sub(hello.ready_ns);
    let agent = kernel.saturating_add(hello.started_ns).min(now);
    [("guest kernel keeps time", kernel), ("agent runs", agent), ("agent ready", now)]
}

/// The recorded stages, earliest first.
#[must_use]
pub fn stages() -> Vec<Stage> {
    timeline().sorted()
}

fn mark_at(name: &str, at_ns: u64) {
    timeline().mark(name, at_ns);
}

fn timeline() -> MutexGuard<'static, Timeline> {
    TIMELINE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux always has a monotonic clock");
    u64::try_from(now.tv_sec() * 1_000_000_000 + now.tv_nsec()).expect("time since boot is not negative")
}

#[cfg(test)]
mod tests {
    use super::*;

    // Other tests fill the process's timeline, so this test uses its own.
    #[test]
    fn stages_are_sorted_by_time_and_bounded() {
        let mut timeline = Timeline(Vec::new());
        timeline.mark("second", now_ns());
        timeline.mark("first", 1);
        let names: Vec<_> = timeline.sorted().into_iter().map(|stage| stage.name).collect();
        assert_eq!(names, ["first", "second"]);
        (0..1000).for_each(|_| timeline.mark("again", 2));
        assert_eq!(timeline.sorted().len(), MAX_STAGES);
    }

    #[test]
    fn the_guests_stages_are_converted_to_the_hosts_clock() {
        let hello = |started_ns, ready_ns| Hello { version: 1, kernel: String::new(), started_ns, ready_ns };
        let times = |hello| guest_stages(&hello, 1000).map(|(_, at_ns)| at_ns);
        assert_eq!(times(hello(200, 300)), [700, 900, 1000]);
        assert_eq!(times(hello(u64::MAX, u64::MAX)), [0, 1000, 1000], "a hostile guest");
    }
}
