//! Where the time of a start went.

use std::fmt::Write;

use nix::time::{ClockId, clock_gettime};
use vmm::control::Stage;

/// Nanoseconds of `CLOCK_MONOTONIC`, which is the same clock in every process of the host.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from).unwrap_or_default();
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The stages of one start, by the command and by the VMM.
#[derive(Debug)]
pub(crate) struct Timeline {
    begin: u64,
    stages: Vec<Stage>,
}

impl Timeline {
    pub(crate) fn new(begin: u64) -> Self {
        Self { begin, stages: Vec::new() }
    }

    /// Notes that the command got this far now.
    pub(crate) fn reached(&mut self, name: &str) {
        self.stages.push(Stage { name: format!("vmrt: {name}"), at_ns: now() });
    }

    /// Adds what the VMM noted.
    pub(crate) fn add(&mut self, stages: Vec<Stage>) {
        self.stages.extend(stages);
    }

    /// A table: milliseconds since the command began, and since the stage before.
    pub(crate) fn table(&self) -> String {
        let mut stages: Vec<_> = self.stages.iter().collect();
        stages.sort_by_key(|stage| stage.at_ns);
        let mut table = format!("{:>10} {:>10}  {}\n", "ms", "+ms", "stage");
        let mut before = self.begin;
        for stage in stages {
            let (at, step) = (since(self.begin, stage.at_ns), since(before, stage.at_ns));
            // Writing to a string does not fail.
            let _ = writeln!(table, "{at:>10} {step:>10}  {}", stage.name);
            before = stage.at_ns;
        }
        table
    }
}

/// Milliseconds with three decimals.
fn since(begin: u64, end: u64) -> String {
    let micros = end.saturating_sub(begin) / 1000;
    format!("{}.{:03}", micros / 1000, micros % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_told_in_their_order_whoever_noted_them() {
        let mut timeline = Timeline::new(1_000_000);
        timeline.stages.push(Stage { name: "last".into(), at_ns: 4_500_000 });
        timeline.add(vec![Stage { name: "first".into(), at_ns: 2_000_000 }]);
        let table = timeline.table();
        let lines: Vec<_> = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(lines[1], ["1.000", "1.000", "first"]);
        assert_eq!(lines[2], ["3.500", "2.500", "last"]);
    }

    #[test]
    fn the_clock_runs() {
        let begin = now();
        assert!(begin > 0 && now() >= begin);
    }
}
