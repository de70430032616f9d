//! The `vmrt` command: an OCI runtime that runs each container in a KVM virtual machine.
//!
//! Each command is a short-lived process. The state of a container is a record in the container's directory
//! ([`sandbox::store`]). To act on a running container, a command sends requests to its VMM over a control connection
//! ([`sandbox::connection`]).
//!
//! The folders are layers. Each uses only those above it in this list, which a test of `vmrt-tests` checks.
//!
//! 1. [`base`]: container ids, the configuration file, the log, the undo stack. It uses nothing else of this crate.
//! 2. [`spec`]: reads and checks `config.json`, and separates the guest's settings from the host's.
//! 3. [`host`]: processes, namespaces, cgroups, network interfaces and hooks of the host.
//! 4. [`files`]: opens the files of the host that the guest gets.
//! 5. [`terminal`]: terminals and standard streams.
//! 6. [`sandbox`]: creates, records, controls and deletes sandboxes and their containers.
//! 7. [`cli`]: parses the command line.
//! 8. [`commands`]: the commands, one file each.
//! 9. `fuzz` (feature `fuzzing`): the targets of the fuzzer.

mod base;
mod cli;
mod commands;
mod files;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod host;
mod sandbox;
mod spec;
mod terminal;

use std::process::ExitCode;

use crate::base::error_chain::chain;

/// Runs the command that the arguments of this process name, and starts VMMs without their jail. The benchmarks compare it with [`main`].
#[cfg(feature = "unjailed-bench")]
#[must_use]
pub fn main_without_jail() -> ExitCode {
    host::unjailed::choose();
    main()
}

/// Runs the command that the arguments of this process name. Returns the exit status, which is that of runc in the same case.
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
