//! The results: raw samples, their median and 95th percentile, and the ratio to each peer.

use std::fmt;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::BenchError;

/// One benchmark, with the results of vmrt and of each peer.
#[derive(Debug, Serialize)]
pub struct Benchmark {
    /// The name of the benchmark.
    pub name: String,
    /// The unit of the samples; smaller is better.
    pub unit: &'static str,
    /// The results, vmrt's first.
    pub entries: Vec<Entry>,
}

/// The result of one program.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// The program.
    pub name: String,
    /// All samples, in the order of the measurement.
    pub samples: Vec<f64>,
    /// The median of the samples.
    pub median: f64,
    /// The 95th percentile (nearest rank).
    pub p95: f64,
}

impl Entry {
    /// An entry from its samples.
    ///
    /// # Panics
    /// Panics if there are no samples.
    pub fn new(name: &str, samples: Vec<f64>) -> Self {
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * 95).div_ceil(100) - 1;
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
        Self { name: name.into(), median, p95: sorted[rank], samples }
    }
}

/// A figure that only vmrt has.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// The name of the figure.
    pub name: String,
    /// The value.
    pub value: f64,
    /// The unit of the value.
    pub unit: &'static str,
}

/// The results of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The host it ran on.
    pub host: String,
    /// The host's kernel.
    pub kernel: String,
    /// The benchmarks that compare vmrt with its peers.
    pub benchmarks: Vec<Benchmark>,
    /// The figures that only vmrt has.
    pub figures: Vec<Figure>,
    /// The stages of one start, as printed by `vmrt run --timeline`.
    pub timeline: String,
}

impl Report {
    /// An empty report.
    pub fn new(host: String) -> Self {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().into();
        Self { host, kernel, benchmarks: Vec::new(), figures: Vec::new(), timeline: String::new() }
    }

    /// Writes `bench.json` into `directory`.
    pub fn write(&self, directory: &Path) -> Result<(), BenchError> {
        let path = directory.join("bench.json");
        let json = serde_json::to_string_pretty(self).map_err(std::io::Error::from);
        json.and_then(|json| fs::write(&path, json + "\n")).map_err(BenchError::io("write", path))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Host: {} (Linux {})\n", self.host, self.kernel)?;
        writeln!(f, "| benchmark | who | median | p95 | unit | vmrt is |\n|---|---|---:|---:|---|---:|")?;
        for benchmark in &self.benchmarks {
            benchmark.fmt(f)?;
        }
        writeln!(f, "\n| figure | value | unit |\n|---|---:|---|")?;
        for figure in &self.figures {
            writeln!(f, "| {} | {:.1} | {} |", figure.name, figure.value, figure.unit)?;
        }
        if self.timeline.is_empty() {
            return Ok(());
        }
        writeln!(f, "\nTimeline of one start:\n\n{}", self.timeline)
    }
}

impl fmt::Display for Benchmark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(ours) = self.entries.first() else { return Ok(()) };
        for (number, entry) in self.entries.iter().enumerate() {
            let name = if number == 0 { self.name.as_str() } else { "" };
            write!(f, "| {name} | {} | {:.1} | {:.1} | {} |", entry.name, entry.median, entry.p95, self.unit)?;
            match number {
                0 => writeln!(f, " |")?,
                _ => writeln!(f, " {:.2} × {} |", ours.median / entry.median, entry.name)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_percentile_are_of_the_sorted_samples() {
        let odd = Entry::new("a", vec![9.0, 1.0, 5.0]);
        assert!((odd.median - 5.0).abs() < 1e-9 && (odd.p95 - 9.0).abs() < 1e-9);
        let even = Entry::new("b", (1..=20).rev().map(f64::from).collect());
        assert!((even.median - 10.5).abs() < 1e-9 && (even.p95 - 19.0).abs() < 1e-9);
    }

    #[test]
    fn the_ratio_is_ours_over_theirs() {
        let entries = vec![Entry::new("vmrt", vec![3.0]), Entry::new("peer", vec![6.0])];
        let row = Benchmark { name: "start".into(), unit: "ms", entries }.to_string();
        assert!(row.contains("| 0.50 × peer |"), "{row}");
    }
}
