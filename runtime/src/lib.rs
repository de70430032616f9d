//! vmrt's command line: an OCI runtime that runs every container in a virtual machine of its own.
//!
//! Each command is a short-lived process. A container's record survives in its directory below the root
//! ([`sandbox::store`]); everything else is a request to its VMM over a control connection ([`sandbox::connection`]).
//!
//! The source is divided into rooms. A room uses only rooms before it in this list, which `rooms` tests:
//!
//! 1. [`base`] needs nothing else of vmrt: container ids, the configuration file, the log, the undo stack.
//! 2. [`spec`] reads and checks `config.json` and splits it into what the guest gets and what the host does.
//! 3. [`host`] is the host's side of a sandbox: processes, namespaces, cgroups, the network, hooks.
//! 4. [`files`] opens the files of the host that the guest gets.
//! 5. [`terminal`] has terminals and standard streams.
//! 6. [`sandbox`] makes, records, controls and removes sandboxes and their containers.
//! 7. [`cli`] parses the command line.
//! 8. [`commands`] has the commands, one file each.

mod base;
mod cli;
mod commands;
mod files;
mod host;
#[cfg(test)]
mod rooms;
mod sandbox;
mod spec;
mod terminal;

use std::process::ExitCode;

use crate::base::error_chain::chain;

/// Runs the command line of this process and returns its exit status, which is runc's.
#[must_use]
pub fn main() -> ExitCode {
    let begin = base::timeline::now();
    let arguments = match cli::parse() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let mut context = match cli::context(&arguments.global, begin) {
        Ok(context) => context,
        Err(error) => {
            eprintln!("vmrt: {}", chain(&error));
            return ExitCode::FAILURE;
        }
    };
    let prefix = arguments.command.failure_prefix();
    match commands::run(&mut context, arguments.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            context.log.error(&format!("{}{}", prefix.text, chain(&error)));
            ExitCode::from(error.exit_code().unwrap_or(prefix.exit_code))
        }
    }
}
