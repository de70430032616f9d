//! What the jail costs: a cold `run` of busybox `true`, and the memory of an idle sandbox, with the jail and without it.
//!
//! The pair without the jail is built from the same sources (`src/bin/`). Both pairs boot each machine: neither uses templates.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::memory::{pid_of, pss_of_process, pss_of_vmm};
use crate::report::{Benchmark, Entry, Figure, Report};
use crate::start::{Detached, WARM_UP, bundle_running, run};
use crate::{BenchError, Settings};

/// The programs of a pair, and its name in the report.
struct Pair {
    name: &'static str,
    runtime: PathBuf,
    config: PathBuf,
}

/// Name, runtime and VMM of both pairs in the directory of the programs, the product's first.
const PAIRS: [[&str; 3]; 2] = [["vmrt", "vmrt", "vmrt-vmm"], ["without jail", "unjailed-vmrt", "unjailed-vmm"]];

impl Pair {
    /// Writes the pair's configuration.
    fn of([name, runtime, vmm]: [&'static str; 3], settings: &Settings) -> Result<Self, BenchError> {
        let directory = settings.jail_programs.as_deref().ok_or(BenchError::NoJailPrograms)?;
        let config = settings.scratch.join(format!("{vmm}.toml"));
        let text = format!(
            "template = false\nvmm = {:?}\nkernel = {:?}\ninitramfs = {:?}\n",
            directory.join(vmm),
            settings.kernel,
            settings.initramfs
        );
        fs::write(&config, text).map_err(BenchError::io("write", &config))?;
        Ok(Self { name, runtime: directory.join(runtime), config })
    }

    fn command(&self, bundle: &Path, id: &str) -> Command {
        let mut command = Command::new(&self.runtime);
        command.arg("--config").arg(&self.config).args(["run", "--bundle"]).arg(bundle).arg(id);
        command
    }
}

/// Measures and adds to `report`.
pub fn measure(settings: &Settings, report: &mut Report) -> Result<(), BenchError> {
    let [jailed, unjailed] = PAIRS;
    let pairs = [Pair::of(jailed, settings)?, Pair::of(unjailed, settings)?];
    let samples = starts(settings, &pairs)?;
    report.figures.extend(difference(&samples));
    let entries = pairs.iter().zip(samples).map(|(pair, samples)| Entry::new(pair.name, samples)).collect();
    report.benchmarks.push(Benchmark { name: "cold run of busybox true, jail".into(), unit: "ms", entries });
    pairs.iter().try_for_each(|pair| measure_memory(settings, pair, report))
}

/// The durations of the starts of both pairs. Each round starts both, and the next one in the other order, so that neither gains by its
/// place.
fn starts(settings: &Settings, pairs: &[Pair; 2]) -> Result<[Vec<f64>; 2], BenchError> {
    let bundle = bundle_running(settings, "jail", &["true"], |_| ())?;
    let mut samples = [const { Vec::new() }; 2];
    for round in 0..WARM_UP + settings.jail_rounds {
        eprintln!("bench: jail, round {} of {}", round + 1, WARM_UP + settings.jail_rounds);
        let first = usize::from(round % 2 == 1);
        for index in [first, 1 - first] {
            let begun = Instant::now();
            run(&mut pairs[index].command(&bundle, &format!("bench-jail-{round}")))?;
            if round >= WARM_UP {
                samples[index].push(begun.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    Ok(samples)
}

/// The ratio of the medians, and the mean of the differences within the rounds with its interval of 95 % (normal distribution).
fn difference([jailed, unjailed]: &[Vec<f64>; 2]) -> Vec<Figure> {
    let median = |samples: &[f64]| Entry::new("", samples.to_vec()).median;
    let differences: Vec<_> = jailed.iter().zip(unjailed).map(|(with, without)| with - without).collect();
    let (mean, half) = mean_and_half_interval(&differences);
    let figure = |name: &str, value, unit| Figure { name: format!("cold run, jail: {name}"), value, unit };
    vec![
        figure("median with it above that without it", (median(jailed) / median(unjailed) - 1.0) * 1e2, "%"),
        figure("mean difference", mean, "ms"),
        figure("mean difference, low end of the 95 % interval", mean - half, "ms"),
        figure("mean difference, high end of the 95 % interval", mean + half, "ms"),
    ]
}

/// The mean of `samples`, and half the width of its interval of 95 %.
#[expect(clippy::cast_precision_loss, reason = "there are few samples")]
fn mean_and_half_interval(samples: &[f64]) -> (f64, f64) {
    let count = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / count;
    let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
    (mean, 1.96 * (squares / (count - 1.0).max(1.0) / count).sqrt())
}

/// The memory of an idle sandbox: its VMM, and its helper if it has one.
fn measure_memory(settings: &Settings, pair: &Pair, report: &mut Report) -> Result<(), BenchError> {
    let bundle = bundle_running(settings, "jail-idle", &["sleep", "1000"], |_| ())?;
    let idle =
        Detached::start_by(&pair.runtime, &["--config".as_ref(), pair.config.as_os_str()], &bundle, "bench-jail")?;
    let vmm = pss_of_vmm(pid_of(&idle)?)?;
    report.figures.push(Figure { name: format!("VMM process PSS without guest RAM, {}", pair.name), ..vmm });
    if let Some(helper) = helper_of("bench-jail") {
        let name = format!("helper process PSS, {}", pair.name);
        report.figures.push(Figure { name, ..pss_of_process(helper)? });
    }
    idle.delete()
}

/// The process id of the helper of a sandbox.
fn helper_of(id: &str) -> Option<u64> {
    let is_helper = |pid: &u64| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        words.contains(&b"sandbox-helper".as_slice()) && words.contains(&id.as_bytes())
    };
    let processes = fs::read_dir("/proc").ok()?;
    processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).find(is_helper)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_the_mean() {
        let (mean, half) = mean_and_half_interval(&[1.0, 2.0, 3.0, 4.0]);
        assert!((mean - 2.5).abs() < 1e-9 && (half - 1.96 * (5.0_f64 / 3.0 / 4.0).sqrt()).abs() < 1e-9, "{half}");
        assert_eq!(mean_and_half_interval(&[7.0]), (7.0, 0.0));
    }

    #[test]
    fn the_difference_is_taken_within_the_rounds() {
        let figures = difference(&[vec![110.0, 210.0, 310.0], vec![100.0, 200.0, 300.0]]);
        let values: Vec<_> = figures.iter().map(|figure| figure.value).collect();
        assert!((values[0] - 5.0).abs() < 1e-9 && values[1..].iter().all(|value| (value - 10.0).abs() < 1e-9));
    }
}
