//! The commands, one file each.

mod check;
mod create;
mod delete;
mod error;
mod events;
mod exec;
mod exec_process;
mod features;
mod helper;
mod kill;
mod list;
mod output;
mod pause;
mod ps;
mod refusal;
mod run;
mod spec;
mod start;
mod state;
mod template;
mod update;
mod update_interfaces;

use self::error::Error;
use crate::cli::Command;
use crate::sandbox::context::Context;

/// Runs a command and returns its exit status.
pub(crate) fn run(context: &mut Context, command: Command) -> Result<u8, Error> {
    match command {
        Command::Check => check::run(context),
        Command::Checkpoint(_) => Err(Error::NotSupported("checkpoint")),
        Command::Create(args) => create::run(context, args),
        Command::Delete(args) => delete::run(context, &args),
        Command::Events(args) => events::run(context, &args),
        Command::Exec(args) => exec::run(context, &args),
        Command::Features => features::run(),
        Command::UpdateInterfaces(args) => update_interfaces::run(context, &args),
        Command::SandboxHelper(args) => helper::serve(context, &args),
        Command::OomNotifier => helper::notify_of_oom_kill(),
        Command::Kill(args) => kill::run(context, &args),
        Command::List(args) => list::run(context, &args),
        Command::Pause(args) => pause::pause(context, &args),
        Command::Ps(args) => ps::run(context, &args),
        Command::Restore(_) => Err(Error::NotSupported("restore")),
        Command::Resume(args) => pause::resume(context, &args),
        Command::Run(args) => run::run(context, args),
        Command::Spec(args) => spec::run(&args),
        Command::Start(args) => start::run(context, &args),
        Command::State(args) => state::run(context, &args),
        Command::Template(command) => template::run(context, command),
        Command::Update(args) => update::run(context, &args),
    }
}
