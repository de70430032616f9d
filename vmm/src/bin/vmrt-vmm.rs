//! `vmrt-vmm`: runs one sandbox from its configuration to its exit status, or the proxy of a container in another sandbox.
//!
//! The runtime starts it with one end of a socket pair as an open descriptor. [`vmm::sandbox`] describes how it ends.

use std::io::{Write, stdout};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use vmm::process::{Options, ProcessError, USAGE};

/// Exit status of a VMM that could not start its sandbox.
const NO_SANDBOX: u8 = 1;

fn start() -> Result<UnixStream, ProcessError> {
    let options = Options::parse(std::env::args_os().skip(1))?;
    // SAFETY: the process has just started and uses no descriptors but the standard streams.
    let control = unsafe { options.take_control() }?;
    options.start_log()?;
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    Ok(control)
}

fn main() -> ExitCode {
    vmm::timeline::mark("VMM runs");
    let control = match start() {
        Ok(control) => control,
        Err(error) => {
            eprintln!("vmrt-vmm: {}\n{USAGE}", vmm::chain(&error));
            return NO_SANDBOX.into();
        }
    };
    match vmm::sandbox::run(control) {
        Ok(status) => {
            let mut exit_file = stdout();
            if let Err(error) = write!(exit_file, "{status}").and_then(|()| exit_file.flush()) {
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
