//! vmrt's command line: an OCI runtime that runs every container in a virtual machine of its own.
//!
//! Each command is a short-lived process. What a container is survives in its directory below the root
//! ([`state`]); everything that happens to it is asked of its VMM over a control connection ([`connection`]).

mod apparmor;
mod block_io;
mod bundle;
mod caller;
mod capabilities;
mod cgroup;
mod check;
mod cli;
mod commands;
mod config;
mod connection;
mod console;
mod context;
mod create;
mod descriptors;
mod device_directories;
mod devices;
mod error;
mod foreground;
mod hooks;
mod host_mounts;
mod host_process;
mod id;
mod id_mappings;
mod interfaces;
mod joined;
mod limits;
mod log;
mod name_server;
mod network;
mod network_namespace;
mod placement;
mod resources;
mod rights;
mod rootless;
mod sandbox;
mod seccomp;
mod shares;
mod signals;
mod sizing;
mod special;
mod state;
mod stdio;
mod systemd;
mod terminal;
mod timeline;
mod timestamp;
mod undo;

use std::process::ExitCode;

use crate::context::Context;

/// Runs the command line of this process and tells how it ended, as runc would.
#[must_use]
pub fn main() -> ExitCode {
    let begin = timeline::now();
    let arguments = match cli::parse() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let mut context = match Context::new(&arguments.global, begin) {
        Ok(context) => context,
        Err(error) => {
            eprintln!("vmrt: {}", error::chain(&error));
            return ExitCode::FAILURE;
        }
    };
    let prefix = arguments.command.failure_prefix();
    match commands::run(&mut context, arguments.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            context.log.error(&format!("{}{}", prefix.text, error::chain(&error)));
            ExitCode::from(error.exit_code().unwrap_or(prefix.exit_code))
        }
    }
}
