//! Runs other programs: mmdebstrap, tar, cp, apt-get.

use std::io;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use thiserror::Error;

use crate::interrupt;

/// The reason why a program failed. Its own messages are on standard error already.
#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error("{program} is not installed: it is in Debian's package {package}")]
    NotInstalled { program: String, package: &'static str },
    #[error("run {program}")]
    Run { program: String, source: io::Error },
    #[error("{program} failed: {status}")]
    Failed { program: String, status: ExitStatus },
}

/// Runs a program of this Debian package to its end. Ends it when this process is asked to end. The program's
/// output is the progress report for the user, so it goes to standard error.
pub(crate) fn run(command: &mut Command, package: &'static str) -> Result<(), Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let child = command.stdout(io::stderr()).spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::NotInstalled { program: program.clone(), package },
        _ => Error::Run { program: program.clone(), source },
    })?;
    let status = wait(child).map_err(|source| Error::Run { program: program.clone(), source })?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::Failed { program, status }),
    }
}

/// Waits for the end of the child. Forwards a signal that asks this process to end.
fn wait(mut child: Child) -> io::Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            interrupt::check()?;
            return Ok(status);
        }
        if interrupt::check().is_err() {
            let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
            kill(Pid::from_raw(pid), Signal::SIGTERM)?;
            child.wait()?;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_its_package() {
        let error = run(&mut Command::new("no-such-program"), "some-package").unwrap_err();
        assert_eq!(error.to_string(), "no-such-program is not installed: it is in Debian's package some-package");
    }

    #[test]
    fn a_failing_program_fails_the_step() {
        let error = run(Command::new("sh").args(["-c", "exit 3"]), "dash").unwrap_err();
        assert_eq!(error.to_string(), "sh failed: exit status: 3");
    }
}
