//! `vmrt-vmm`: runs one sandbox from its configuration to its exit status, or the proxy of a container in another sandbox, or the OOM
//! notifier.
//!
//! The runtime starts it with one end of a socket pair as an open descriptor. [`vmm::sandbox`] describes how it ends.

use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use vmm::process::{Options, ProcessError, USAGE, oom_notifier};

/// Exit status of a VMM that could not start its sandbox.
const NO_SANDBOX: u8 = 1;

fn start() -> Result<(Options, UnixStream), ProcessError> {
    let options = Options::parse(std::env::args_os().skip(1))?;
    // SAFETY: the process has just started and uses no descriptors but the standard streams.
    let control = unsafe { options.take_control() }?;
    options.start_log()?;
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    Ok((options, control))
}

/// Runs the OOM notifier. The VMM reads the error from its standard output.
fn run_oom_notifier() -> ExitCode {
    if let Err(error) = oom_notifier::run() {
        println!("{}", vmm::chain(&error));
    }
    NO_SANDBOX.into()
}

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == oom_notifier::ARGUMENT) {
        return run_oom_notifier();
    }
    vmm::timeline::mark("VMM runs");
    let (options, control) = match start() {
        Ok(started) => started,
        Err(error) => {
            eprintln!("vmrt-vmm: {}\n{USAGE}", vmm::chain(&error));
            return NO_SANDBOX.into();
        }
    };
    match vmm::sandbox::run(control) {
        Ok(status) => {
            if let Err(error) = options.write_exit_status(status) {
                tracing::error!(%error, "cannot write the exit status {status}");
            }
            status.into()
        }
        Err(error) => {
            tracing::error!("{}", vmm::chain(&error));
            NO_SANDBOX.into()
        }
    }
}
