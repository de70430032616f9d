//! The command line: runc's, and what vmrt adds.

mod arguments;
mod context;
mod duration;
mod options;
mod update;

use std::process::ExitCode;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};

pub(crate) use self::arguments::{Arguments, Command};
pub(crate) use self::context::context;
pub(crate) use self::options::{
    BundleArgs, CreateArgs, DeleteArgs, EventsArgs, ExecArgs, IdArgs, KillArgs, ListArgs, ListFormat, PsArgs, RunArgs,
    SpecArgs,
};
pub(crate) use self::update::UpdateArgs;
use crate::sandbox::interfaces::FOLLOW_COMMAND;

/// Parses this process's arguments. Help, version and errors are printed here.
///
/// # Errors
/// The exit status to end with: as in runc, 1 for a wrong command line and 3 for an unknown command.
pub(crate) fn parse() -> Result<Arguments, ExitCode> {
    Arguments::try_parse().map_err(|mut error| {
        suggest_no_hidden(&mut error);
        // Standard output or error may be closed; there is nobody else to tell.
        let _ = error.print();
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => ExitCode::SUCCESS,
            ErrorKind::InvalidSubcommand => ExitCode::from(3),
            _ => ExitCode::FAILURE,
        }
    })
}

/// Removes hidden commands from the suggestions of an error: the parser suggests every command.
fn suggest_no_hidden(error: &mut clap::Error) {
    let Some(ContextValue::Strings(mut names)) = error.remove(ContextKind::SuggestedSubcommand) else { return };
    names.retain(|name| name != FOLLOW_COMMAND);
    if names.is_empty() {
        // Further hints, of which there are none, would still get an empty line.
        error.remove(ContextKind::Suggested);
    } else {
        error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(names));
    }
}

#[cfg(test)]
mod tests;
