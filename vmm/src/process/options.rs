//! What the runtime starts `vmrt-vmm` with: its arguments, the inherited control connection, and its standard streams. Standard error
//! is the log, and standard output takes the exit status, for readers that are not the parent process.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use thiserror::Error;

use super::log;

/// The usage line.
pub const USAGE: &str = "usage: vmrt-vmm --control-fd FD [--log-format text|json] [--debug] 2>>LOG >EXIT_STATUS";

/// The program's arguments.
#[derive(Debug, Eq, PartialEq)]
pub struct Options {
    /// The inherited end of the control connection.
    pub control_fd: RawFd,
    /// Format of the log's lines.
    pub log_format: LogFormat,
    /// Whether to log messages of level `DEBUG`.
    pub debug: bool,
}

/// Format of the log's lines.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LogFormat {
    /// Plain text.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why the program cannot run with its arguments.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// The argument is not an option of the program.
    #[error("unknown argument {0:?}")]
    Unknown(OsString),
    /// The value of an option is missing or invalid.
    #[error("{0} needs {1}")]
    Value(&'static str, &'static str),
    /// `--control-fd` is missing: the program was not started by vmrt.
    #[error("--control-fd is missing: vmrt starts this program, it is not for use by hand")]
    NoControlFd,
    /// The descriptor is not a Unix stream socket.
    #[error("descriptor {0} is not a control connection")]
    ControlFd(RawFd, #[source] io::Error),
    /// The process has no standard error, or no descriptor is left.
    #[error("cannot log to standard error")]
    StandardError(#[source] io::Error),
}

impl Options {
    /// Parses the arguments without the program's name.
    ///
    /// # Errors
    /// The first invalid argument.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, ProcessError> {
        let mut control_fd = None;
        let mut options = Self { control_fd: -1, log_format: LogFormat::Text, debug: false };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match argument.to_str() {
                Some("--control-fd") => control_fd = Some(descriptor(arguments.next().as_ref())?),
                Some("--log-format") => options.log_format = log_format(arguments.next().as_ref())?,
                Some("--debug") => options.debug = true,
                _ => return Err(ProcessError::Unknown(argument)),
            }
        }
        options.control_fd = control_fd.ok_or(ProcessError::NoControlFd)?;
        Ok(options)
    }

    /// Initializes logging. The log goes to standard error.
    ///
    /// # Errors
    /// The process has no standard error, or no descriptor is left.
    pub fn start_log(&self) -> Result<(), ProcessError> {
        let file = io::stderr().as_fd().try_clone_to_owned().map_err(ProcessError::StandardError)?;
        log::start(File::from(file), self.log_format, self.debug);
        Ok(())
    }

    /// Takes ownership of the inherited connection, and makes it close on `exec`.
    ///
    /// # Errors
    /// The descriptor is not open, or not a Unix stream socket.
    ///
    /// # Safety
    /// Nothing else in this process may use or own the descriptor.
    pub unsafe fn take_control(&self) -> Result<UnixStream, ProcessError> {
        let failed = |error: nix::Error| ProcessError::ControlFd(self.control_fd, error.into());
        // SAFETY: the caller guarantees that nothing else owns the descriptor. If it is not open, the calls below fail.
        let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(self.control_fd) });
        if let Err(error) = stream.peer_addr() {
            // A descriptor that is not the connection must not be closed here.
            std::mem::forget(stream);
            return Err(ProcessError::ControlFd(self.control_fd, error));
        }
        fcntl(&stream, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(failed)?;
        Ok(stream)
    }
}

fn descriptor(value: Option<&OsString>) -> Result<RawFd, ProcessError> {
    let number = value.and_then(|value| value.to_str()).and_then(|value| value.parse().ok());
    // The standard streams are no control connection.
    number.filter(|fd| *fd > 2).ok_or(ProcessError::Value("--control-fd", "the number of an open descriptor"))
}

fn log_format(value: Option<&OsString>) -> Result<LogFormat, ProcessError> {
    match value.and_then(|value| value.to_str()) {
        Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        _ => Err(ProcessError::Value("--log-format", "text or json")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, String> {
        Options::parse(arguments.iter().map(OsString::from)).map_err(|error| error.to_string())
    }

    #[test]
    fn every_option_is_parsed() {
        let options = parse(&["--control-fd", "3", "--log-format", "json", "--debug"]).unwrap();
        assert_eq!(options, Options { control_fd: 3, log_format: LogFormat::Json, debug: true });
    }

    #[test]
    fn errors_name_the_invalid_argument() {
        assert!(parse(&[]).unwrap_err().starts_with("--control-fd is missing"));
        assert_eq!(parse(&["--control-fd"]).unwrap_err(), "--control-fd needs the number of an open descriptor");
        assert_eq!(parse(&["--control-fd", "1"]).unwrap_err(), "--control-fd needs the number of an open descriptor");
        assert_eq!(parse(&["--log-format", "xml"]).unwrap_err(), "--log-format needs text or json");
        assert_eq!(parse(&["--verbose"]).unwrap_err(), "unknown argument \"--verbose\"");
    }

    #[test]
    fn only_a_socket_is_taken() {
        let options = |control_fd| Options { control_fd, log_format: LogFormat::Text, debug: false };
        let (ours, theirs) = UnixStream::pair().unwrap();
        let fd = theirs.into_raw_fd();
        // SAFETY: `into_raw_fd` has just released the descriptor.
        let taken = unsafe { options(fd).take_control() }.unwrap();
        assert_eq!(taken.as_raw_fd(), fd);
        drop(ours);
        let file = tempfile::tempfile().unwrap();
        // SAFETY: the method does not take ownership of a descriptor that is not a socket.
        let refused = unsafe { options(file.as_raw_fd()).take_control() }.unwrap_err();
        assert!(matches!(refused, ProcessError::ControlFd(..)));
        assert!(file.metadata().is_ok(), "a file was closed");
    }
}
