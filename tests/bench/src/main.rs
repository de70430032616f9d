//! vmrt's benchmarks: measures vmrt and its peers in turn, in one run on one host.
//!
//! `vmrt-bench run` measures, prints the table, and writes `bench.json` and `bench.svg`. The same static program also
//! runs in the guests: `vmrt-bench workloads` times the file system workloads, and so does the program without
//! arguments as PID 1 of a QEMU guest. `tests/bench/run` starts it.

mod chart;
mod docker;
mod exec;
mod filesystem;
mod memory;
mod report;
mod start;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use thiserror::Error;

use report::Report;

/// Why a benchmark could not be run.
#[derive(Debug, Error)]
pub enum BenchError {
    /// A file or directory could not be read or written.
    #[error("{step} {path}: {source}")]
    Io {
        /// The operation.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A measured program failed, so its time means nothing.
    #[error("`{command}` failed ({status}): {stderr}")]
    Command {
        /// The program and its arguments.
        command: String,
        /// Its exit status.
        status: String,
        /// Its standard error.
        stderr: String,
    },
    /// A program printed an unexpected output.
    #[error("`{command}` printed no {expected}: {output}")]
    Output {
        /// The program.
        command: String,
        /// The missing part.
        expected: &'static str,
        /// The output.
        output: String,
    },
    /// A guest ended before all workloads were done.
    #[error("the guest ended in: {0}")]
    Unfinished(&'static str),
    /// The chart could not be drawn.
    #[error("draw the chart: {0}")]
    Chart(String),
}

impl BenchError {
    /// A closure for `map_err` that makes a [`BenchError::Io`].
    pub fn io(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { step, path, source }
    }
}

#[derive(Parser)]
#[command(name = "vmrt-bench", version, about = "Measures vmrt and its peers in turn")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure everything, print the table, write bench.json and bench.svg
    Run(Settings),
    /// Inside a guest: time every file system workload in a directory and write the times there
    Workloads {
        /// The directory
        directory: PathBuf,
    },
}

/// The parameters of the measurement.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Measured rounds of the start benchmark, each running every peer once
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// Rounds of the file system benchmark
    #[arg(long, default_value_t = 1)]
    fs_rounds: u32,
    /// A bundle with busybox
    #[arg(long)]
    busybox: PathBuf,
    /// A Debian root file system
    #[arg(long)]
    debian_rootfs: PathBuf,
    /// The guest kernel
    #[arg(long)]
    kernel: PathBuf,
    /// The guest initramfs
    #[arg(long)]
    initramfs: PathBuf,
    /// QEMU's virtiofsd
    #[arg(long)]
    virtiofsd: PathBuf,
    /// Empty directory on a local file system for temporary files
    #[arg(long)]
    scratch: PathBuf,
    /// Directory for bench.json and bench.svg
    #[arg(long)]
    out: PathBuf,
    /// Name of this host in the report
    #[arg(long)]
    host: String,
}

fn main() -> ExitCode {
    if std::process::id() == 1 && std::env::args_os().len() == 1 {
        filesystem::run_as_init();
    }
    let outcome = match Cli::parse().command {
        Command::Run(settings) => run(&settings),
        Command::Workloads { directory } => filesystem::run_all(&directory),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmrt-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all parts. Writes the results after each part, even if it failed.
fn run(settings: &Settings) -> Result<(), BenchError> {
    let mut report = Report::new(settings.host.clone());
    let mut outcome = Ok(());
    // Docker comes last: it moves the process into new namespaces.
    let parts = [start::measure, exec::measure, memory::measure, filesystem::measure, docker::measure];
    for measure in parts {
        outcome = measure(settings, &mut report);
        report.write(&settings.out)?;
        chart::draw(&report, &settings.out.join("bench.svg"))?;
        if outcome.is_err() {
            break;
        }
    }
    print!("{report}");
    outcome
}
