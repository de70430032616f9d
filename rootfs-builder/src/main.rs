//! `rootfs-builder`: builds vmrt's guest initramfs and example bundles.

mod bundle;
mod cli;
mod command;
mod initramfs;
mod interrupt;
mod staging;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rootfs-builder: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Box<dyn std::error::Error>> {
    match command {
        Command::Initramfs { agent, output } => Ok(initramfs::build(&agent, &output)?),
        Command::Bundle { kind } => {
            interrupt::install()?;
            Ok(bundle::build(*kind)?)
        }
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
