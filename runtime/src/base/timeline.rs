//! The timeline of a container's start.

use std::fmt::Write;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde_json::json;
use vmm::control::Stage;

/// Nanoseconds of `CLOCK_MONOTONIC`. All processes of the host share this clock.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The stages of one start, as recorded by the command and by the VMM.
#[derive(Debug)]
pub(crate) struct Timeline {
    begin: u64,
    stages: Vec<Stage>,
}

impl Timeline {
    /// `begin` is the time at which the command started, as [`now`] returns it.
    pub(crate) fn new(begin: u64) -> Self {
        Self { begin, stages: Vec::new() }
    }

    /// Records that the command reached the stage `name` now.
    pub(crate) fn reached(&mut self, name: &str) {
        self.stages.push(Stage { name: format!("vmrt: {name}"), at_ns: now() });
    }

    /// Adds the stages that the VMM recorded.
    pub(crate) fn add(&mut self, stages: Vec<Stage>) {
        self.stages.extend(stages);
    }

    /// Formats the stages as a table: milliseconds since the start of the command, and since the previous stage.
    pub(crate) fn table(&self) -> String {
        let mut table = format!("{:>10} {:>10}  {}\n", "ms", "+ms", "stage");
        let mut previous = self.begin;
        for stage in self.sorted() {
            let (at, step) = (elapsed_ms(self.begin, stage.at_ns), elapsed_ms(previous, stage.at_ns));
            // Writing to a string does not fail.
            let _ = writeln!(table, "{at:>10} {step:>10}  {}", stage.name);
            previous = stage.at_ns;
        }
        table
    }

    /// Formats the stages as an array of objects in JSON: the name, and the milliseconds since the start of the command.
    pub(crate) fn json(&self) -> serde_json::Value {
        let milliseconds =
            |stage: &Stage| Duration::from_nanos(stage.at_ns.saturating_sub(self.begin)).as_secs_f64() * 1e3;
        self.sorted().into_iter().map(|stage| json!({"stage": stage.name, "ms": milliseconds(stage)})).collect()
    }

    fn sorted(&self) -> Vec<&Stage> {
        let mut stages: Vec<_> = self.stages.iter().collect();
        stages.sort_by_key(|stage| stage.at_ns);
        stages
    }
}

/// Milliseconds from `begin` to `end`, both in nanoseconds, with three decimals.
fn elapsed_ms(begin: u64, end: u64) -> String {
    let micros = end.saturating_sub(begin) / 1000;
    format!("{}.{:03}", micros / 1000, micros % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_listed_by_time() {
        let mut timeline = Timeline::new(1_000_000);
        timeline.stages.push(Stage { name: "last".into(), at_ns: 4_500_000 });
        timeline.add(vec![Stage { name: "first".into(), at_ns: 2_000_000 }]);
        let table = timeline.table();
        let lines: Vec<_> = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(lines[1], ["1.000", "1.000", "first"]);
        assert_eq!(lines[2], ["3.500", "2.500", "last"]);
        assert_eq!(timeline.json(), json!([{"stage": "first", "ms": 1.0}, {"stage": "last", "ms": 3.5}]));
    }

    #[test]
    fn the_clock_advances() {
        let begin = now();
        assert!(begin > 0 && now() >= begin);
    }
}
