//! When each stage of this process's one start was reached.

use std::sync::{Mutex, MutexGuard, PoisonError};

use agent::Hello;
use nix::time::{ClockId, clock_gettime};

use crate::control::Stage;

/// Most stages that are kept: a start has about fifteen, later containers of a sandbox add theirs.
const MAX_STAGES: usize = 64;

static TIMELINE: Mutex<Timeline> = Mutex::new(Timeline(Vec::new()));

/// Stages in the order in which they were noted.
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

/// Notes that `name` has just been done.
pub fn mark(name: &str) {
    mark_at(name, now_ns());
}

/// Notes the guest's own stages. Its clock began with its kernel, and its greeting has just come.
pub fn mark_guest(hello: &Hello) {
    guest_stages(hello, now_ns()).into_iter().for_each(|(name, at_ns)| mark_at(name, at_ns));
}

/// A guest that lies about its clock is not believed beyond `now`.
fn guest_stages(hello: &Hello, now: u64) -> [(&'static str, u64); 3] {
    let kernel = now.saturating_sub(hello.ready_ns);
    let agent = kernel.saturating_add(hello.started_ns).min(now);
    [("guest kernel keeps time", kernel), ("agent runs", agent), ("agent ready", now)]
}

/// The stages so far, earliest first.
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
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has a monotonic clock");
    u64::try_from(now.tv_sec() * 1_000_000_000 + now.tv_nsec()).expect("time since boot is not negative")
}

#[cfg(test)]
mod tests {
    use super::*;

    // Not on the process's own timeline: other tests fill that.
    #[test]
    fn stages_come_in_the_order_of_their_times_and_are_bounded() {
        let mut timeline = Timeline(Vec::new());
        timeline.mark("second", now_ns());
        timeline.mark("first", 1);
        let names: Vec<_> = timeline.sorted().into_iter().map(|stage| stage.name).collect();
        assert_eq!(names, ["first", "second"]);
        (0..1000).for_each(|_| timeline.mark("again", 2));
        assert_eq!(timeline.sorted().len(), MAX_STAGES);
    }

    #[test]
    fn the_guests_stages_are_put_on_the_hosts_clock() {
        let hello = |started_ns, ready_ns| Hello { version: 1, kernel: String::new(), started_ns, ready_ns };
        let times = |hello| guest_stages(&hello, 1000).map(|(_, at_ns)| at_ns);
        assert_eq!(times(hello(200, 300)), [700, 900, 1000]);
        assert_eq!(times(hello(u64::MAX, u64::MAX)), [0, 1000, 1000], "a guest that lies");
    }
}
