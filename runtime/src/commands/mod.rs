//! The commands, one file each.

mod create;
mod delete;
mod events;
mod exec;
mod exec_process;
mod features;
pub(crate) mod follow_interfaces;
mod kill;
mod list;
mod pause;
mod ps;
mod run;
mod spec;
mod start;
mod state;
mod update;

use std::env;
use std::io::{self, Write};

use serde::Serialize;

use crate::cli::{BundleArgs, Command};
use crate::context::Context;
use crate::error::Error;

/// Runs one command; its exit status.
pub(crate) fn run(context: &mut Context, command: Command) -> Result<u8, Error> {
    match command {
        Command::Check => crate::check::run(context),
        Command::Checkpoint(_) => Err(Error::NotYet("checkpoint")),
        Command::Create(args) => create::run(context, args),
        Command::Delete(args) => delete::run(context, &args),
        Command::Events(args) => events::run(context, &args),
        Command::Exec(args) => exec::run(context, &args),
        Command::Features => features::run(),
        Command::FollowInterfaces(args) => follow_interfaces::run(context, &args),
        Command::Kill(args) => kill::run(context, &args),
        Command::List(args) => list::run(context, &args),
        Command::Pause(args) => pause::pause(context, &args),
        Command::Ps(args) => ps::run(context, &args),
        Command::Restore(_) => Err(Error::NotYet("restore")),
        Command::Resume(args) => pause::resume(context, &args),
        Command::Run(args) => run::run(context, args),
        Command::Spec(args) => spec::run(&args),
        Command::Start(args) => start::run(context, &args),
        Command::State(args) => state::run(context, &args),
        Command::Update(args) => update::run(context, &args),
    }
}

/// Refuses options of `create` and `run` that cannot be honoured.
fn check_bundle_args(args: &BundleArgs) -> Result<(), Error> {
    refuse_preserve_fds(args.preserve_fds)
}

fn refuse_preserve_fds(count: u32) -> Result<(), Error> {
    let reason = "is refused: descriptors of the host mean nothing to the guest's kernel";
    refuse_if(count > 0, "--preserve-fds", reason)?;
    refuse_if(has_activation_sockets(), "LISTEN_FDS", reason)
}

/// Whether sockets were passed for the container, as systemd does it: meant for this very process.
fn has_activation_sockets() -> bool {
    let number = |name| env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    number("LISTEN_PID") == Some(std::process::id()) && number("LISTEN_FDS").is_some_and(|count| count > 0)
}

fn refuse_if(given: bool, option: &'static str, reason: &'static str) -> Result<(), Error> {
    if given { Err(Error::Refused { option, reason }) } else { Ok(()) }
}

pub(crate) fn print(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Error::Output)
}

fn print_json(value: &impl Serialize, pretty: bool) -> Result<(), Error> {
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    print(&(text.map_err(Error::Encode)? + "\n"))
}
