//! The command line: runc's, with additions of vmrt.

mod arguments;
mod context;
mod duration;
mod options;
mod template;
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
pub(crate) use self::template::{TemplateCommand, TemplateCreateArgs, TemplateNamesArgs};
pub(crate) use self::update::UpdateArgs;
use crate::host::oom_notifier;
use crate::sandbox::helper;
use crate::sandbox::interfaces::UPDATE_COMMAND;

/// Commands that only vmrt runs.
const HIDDEN: [&str; 3] = [UPDATE_COMMAND, helper::COMMAND, oom_notifier::COMMAND];

/// Parses this process's arguments. Prints the help text, the version or an error.
///
/// # Errors
/// The exit status for the process: 0 after the help text or the version, and as in runc, 1 for an invalid command line and 3 for an
/// unknown command.
pub(crate) fn parse() -> Result<Arguments, ExitCode> {
    Arguments::try_parse().map_err(|mut error| {
        remove_hidden_suggestions(&mut error);
        // Standard output or standard error may be closed. Then the failure cannot be reported.
        let _ = error.print();
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => ExitCode::SUCCESS,
            ErrorKind::InvalidSubcommand => ExitCode::from(3),
            _ => ExitCode::FAILURE,
        }
    })
}

/// Removes hidden commands from the suggestions of an error: the parser suggests all commands.
fn remove_hidden_suggestions(error: &mut clap::Error) {
    let Some(ContextValue::Strings(mut names)) = error.remove(ContextKind::SuggestedSubcommand) else { return };
    names.retain(|name| !HIDDEN.contains(&name.as_str()));
    if names.is_empty() {
        // An empty list of hints would still be printed as an empty line.
        error.remove(ContextKind::Suggested);
    } else {
        error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(names));
    }
}

#[cfg(test)]
mod tests;
