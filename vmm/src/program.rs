//! The `vmrt-vmm` program, from its arguments to its exit status.

use std::ffi::OsString;
use std::io::{Write, stdout};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use crate::process::{Options, ProcessError, USAGE};
use crate::{chain, jail, sandbox, timeline};

/// Exit status of a VMM that could not start its sandbox.
const NO_SANDBOX: u8 = 1;

/// Runs the program with `arguments`, those after its name. Call it at the start of the process.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    timeline::mark("VMM runs");
    let control = match start(arguments) {
        Ok(control) => control,
        Err(error) => {
            eprintln!("vmrt-vmm: {}\n{USAGE}", chain(&error));
            return NO_SANDBOX.into();
        }
    };
    match sandbox::run(control) {
        Ok(status) => {
            let mut exit_file = stdout();
            if let Err(error) = write!(exit_file, "{status}").and_then(|()| exit_file.flush()) {
                tracing::error!(%error, "cannot write the exit status {status}");
            }
            status.into()
        }
        Err(error) => {
            tracing::error!("{}", chain(&error));
            NO_SANDBOX.into()
        }
    }
}

fn start(arguments: impl IntoIterator<Item = OsString>) -> Result<UnixStream, ProcessError> {
    let options = Options::parse(arguments)?;
    // SAFETY: the process has just started and uses no descriptors but the standard streams.
    let control = unsafe { options.take_control() }?;
    options.start_log()?;
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("{panic}");
        jail::faults::panic_is_logged();
    }));
    Ok(control)
}
