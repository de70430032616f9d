//! vmrt's benchmarks: measures vmrt and its peers in turn, in one run on one host.
//!
//! `vmrt-bench run` measures, prints the table, and writes `bench.json` and `bench.svg`. The same static program also
//! runs in the guests: `vmrt-bench workloads` times the file system workloads, and so does the program without
//! arguments as PID 1 of a QEMU guest. `tests/bench/run` starts it.

mod chart;
mod docker;
mod exec;
mod filesystem;
mod jail;
mod memory;
mod report;
mod start;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
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
    /// The part `jail` was asked for without its programs.
    #[error("the part jail needs --jail-programs")]
    NoJailPrograms,
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
    Run(Box<Settings>),
    /// Inside a guest: time every file system workload in a directory and write the times there
    Workloads {
        /// The directory
        directory: PathBuf,
    },
}

/// A part of the measurement.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Part {
    /// A cold `run`, with runc, crun and QEMU
    Start,
    /// `exec`, with runc and crun
    Exec,
    /// The cost of an idle sandbox
    Memory,
    /// File system workloads, with the host and QEMU
    Files,
    /// `docker run`, with runc
    Docker,
    /// A cold `run` and the memory of an idle sandbox, with the jail and without it
    Jail,
}

impl Part {
    /// The parts that a run without `--part` has. Docker comes last: it moves the process into new namespaces.
    const DEFAULT: [Self; 5] = [Self::Start, Self::Exec, Self::Memory, Self::Files, Self::Docker];

    fn measure(self, settings: &Settings, report: &mut Report) -> Result<(), BenchError> {
        match self {
            Self::Start => start::measure(settings, report),
            Self::Exec => exec::measure(settings, report),
            Self::Memory => memory::measure(settings, report),
            Self::Files => filesystem::measure(settings, report),
            Self::Docker => docker::measure(settings, report),
            Self::Jail => jail::measure(settings, report),
        }
    }
}

/// The parameters of the measurement.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// A part to measure, in the place of all but `jail`; may be repeated
    #[arg(long = "part", value_enum)]
    parts: Vec<Part>,
    /// Measured rounds of the part `jail`, each starting a container with the jail and one without it
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u32).range(1..))]
    jail_rounds: u32,
    /// Directory with the programs of the part `jail`: vmrt, vmrt-vmm, unjailed-vmrt and unjailed-vmm
    #[arg(long)]
    jail_programs: Option<PathBuf>,
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

/// Runs the chosen parts. Writes the results after each part, even if it failed.
fn run(settings: &Settings) -> Result<(), BenchError> {
    let mut report = Report::new(settings.host.clone());
    let mut outcome = Ok(());
    let parts = if settings.parts.is_empty() { &Part::DEFAULT[..] } else { &settings.parts };
    for part in parts {
        outcome = part.measure(settings, &mut report);
        report.write(&settings.out)?;
        chart::draw(&report, &settings.out.join("bench.svg"))?;
        if outcome.is_err() {
            break;
        }
    }
    print!("{report}");
    outcome
}
