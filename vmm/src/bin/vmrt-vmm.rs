//! `vmrt-vmm`: one sandbox, from its configuration to its exit status.
//!
//! Started by the runtime, with one end of a socket pair as an open descriptor. See `vmm::sandbox` for how it ends.

use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use vmm::process::{Options, ProcessError, USAGE};
use vmm::victim;

/// Exit status of a VMM that could not make its sandbox.
const NO_SANDBOX: u8 = 1;

fn start() -> Result<(Options, UnixStream), ProcessError> {
    let options = Options::parse(std::env::args_os().skip(1))?;
    // SAFETY: this process has only just begun and uses no descriptor but the standard streams.
    let control = unsafe { options.take_control() }?;
    options.start_log()?;
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    Ok((options, control))
}

/// What has to be said is read by the VMM.
fn be_a_victim() -> ExitCode {
    if let Err(error) = victim::run() {
        println!("{}", vmm::chain(&error));
    }
    NO_SANDBOX.into()
}

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == victim::ARGUMENT) {
        return be_a_victim();
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
            if let Err(error) = options.leave_status(status) {
                tracing::error!(%error, "cannot leave the exit status {status} behind");
            }
            status.into()
        }
        Err(error) => {
            tracing::error!("{}", vmm::chain(&error));
            NO_SANDBOX.into()
        }
    }
}
