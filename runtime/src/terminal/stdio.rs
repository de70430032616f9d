//! The file descriptors behind the standard streams of a container process.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use agent::TerminalSize;
use nix::fcntl::OFlag;
use oci_spec::runtime::Process;
use thiserror::Error;
use vmm::control::StdioFds;

use crate::terminal::console::{self, ConsoleError};
use crate::terminal::own_description::own_description;
use crate::terminal::tty::{RawTerminal, TerminalError};

/// Why the standard streams cannot be opened. Messages that runc has are worded as in runc.
#[derive(Debug, Error)]
pub(crate) enum StdioError {
    #[error("cannot allocate tty if vmrt will detach without setting console socket")]
    DetachedTerminal,
    #[error("cannot use console socket if vmrt will not detach or allocate tty")]
    UnexpectedSocket,
    #[error("duplicate the standard streams")]
    Duplicate(#[source] io::Error),
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    #[error(transparent)]
    Console(#[from] ConsoleError),
}

/// The standard streams of one container process.
#[derive(Debug)]
pub(crate) struct ProcessStdio {
    /// How the VMM interprets the descriptors.
    pub(crate) kind: StdioFds,
    fds: Vec<OwnedFd>,
    /// The caller's terminal in raw mode, if the process is connected to it.
    pub(crate) terminal: Option<RawTerminal>,
    /// Whether the descriptors refer to a pseudo-terminal that was created for the caller.
    is_console: bool,
}

/// How to connect a container process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StdioOptions<'a> {
    /// Whether the process gets a terminal.
    pub(crate) terminal: bool,
    /// Whether the command exits before the process does.
    pub(crate) detach: bool,
    /// The socket that receives the master of a new terminal. An empty path is no socket.
    pub(crate) console_socket: Option<&'a Path>,
    /// Initial size of a new terminal.
    pub(crate) size: Option<TerminalSize>,
}

impl ProcessStdio {
    /// Opens the streams that `options` describe.
    pub(crate) fn open(options: StdioOptions) -> Result<Self, StdioError> {
        let socket = options.console_socket.filter(|path| !path.as_os_str().is_empty());
        match (options.terminal, options.detach, socket) {
            (false, _, Some(_)) | (true, false, Some(_)) => Err(StdioError::UnexpectedSocket),
            (true, true, None) => Err(StdioError::DetachedTerminal),
            (true, true, Some(path)) => Self::from_console(&console::create(path, options.size)?, options.size),
            (true, false, None) => Self::from_caller_terminal(options.size),
            (false, _, None) => Self::inherit(),
        }
    }

    /// The descriptors in the order in which the VMM receives them.
    pub(crate) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.fds.iter().map(AsFd::as_fd).collect()
    }

    /// The pseudo-terminal that was created for the caller, if any. The process that reports its size needs it.
    pub(crate) fn console(&self) -> Option<BorrowedFd<'_>> {
        self.fds.first().filter(|_| self.is_console).map(AsFd::as_fd)
    }

    /// Returns the pseudo-terminal that was created for the caller, if any, and closes all other descriptors.
    pub(crate) fn into_console(self) -> Option<OwnedFd> {
        self.fds.into_iter().next().filter(|_| self.is_console)
    }

    fn from_caller_terminal(size: Option<TerminalSize>) -> Result<Self, StdioError> {
        let fds = open_again([io::stdin().as_fd(), io::stdout().as_fd()])?;
        let terminal = RawTerminal::acquire()?;
        // As with runc, no carriage returns are added if the output goes to a pipe or a file.
        let kind =
            StdioFds::Terminal { size: terminal.size().or(size), no_carriage_return: !io::stdout().is_terminal() };
        Ok(Self { kind, fds, terminal: Some(terminal), is_console: false })
    }

    fn inherit() -> Result<Self, StdioError> {
        let fds = open_again([io::stdin().as_fd(), io::stdout().as_fd(), io::stderr().as_fd()])?;
        let kind = StdioFds::Streams { stdin: true, stdout: true, stderr: true };
        Ok(Self { kind, fds, terminal: None, is_console: false })
    }

    fn from_console(slave: &OwnedFd, size: Option<TerminalSize>) -> Result<Self, StdioError> {
        let fds = open_again([slave.as_fd(), slave.as_fd()])?;
        Ok(Self { kind: StdioFds::Terminal { size, no_carriage_return: false }, fds, terminal: None, is_console: true })
    }
}

/// Opens the first descriptor again for input, and the others for output.
fn open_again<const N: usize>(fds: [BorrowedFd; N]) -> Result<Vec<OwnedFd>, StdioError> {
    let access = std::iter::once(OFlag::O_RDONLY).chain(std::iter::repeat(OFlag::O_WRONLY));
    let opened = fds.into_iter().zip(access).map(|(fd, access)| own_description(fd, access));
    opened.collect::<io::Result<_>>().map_err(StdioError::Duplicate)
}

/// The size of the terminal in the specification of a process. A size of zero counts as none.
pub(crate) fn console_size(process: &Process) -> Option<TerminalSize> {
    let size = process.console_size()?;
    let (rows, columns) = (u16::try_from(size.height()).ok()?, u16::try_from(size.width()).ok()?);
    (rows > 0 && columns > 0).then_some(TerminalSize { rows, columns })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(terminal: bool, detach: bool, console_socket: Option<&Path>) -> Result<ProcessStdio, StdioError> {
        ProcessStdio::open(StdioOptions { terminal, detach, console_socket, size: None })
    }

    #[test]
    fn a_detached_terminal_requires_a_console_socket() {
        let path = Some(Path::new("/nonexistent"));
        assert!(matches!(open(true, true, None), Err(StdioError::DetachedTerminal)));
        assert!(matches!(open(false, true, path), Err(StdioError::UnexpectedSocket)));
        assert!(matches!(open(true, false, path), Err(StdioError::UnexpectedSocket)));
        assert!(matches!(open(true, true, path), Err(StdioError::Console(_))));
        assert!(matches!(open(true, true, Some(Path::new(""))), Err(StdioError::DetachedTerminal)));
    }

    #[test]
    fn a_process_without_a_terminal_inherits_the_streams_of_the_command() {
        let stdio = open(false, true, None).unwrap();
        assert_eq!(stdio.fds().len(), stdio.kind.count());
        assert!(stdio.console().is_none() && stdio.terminal.is_none());
    }

    #[test]
    fn a_console_size_of_zero_is_no_size() {
        let process = |json: &str| serde_json::from_str::<Process>(json).unwrap();
        let some = process(r#"{"user": {}, "cwd": "/", "consoleSize": {"height": 24, "width": 80}}"#);
        assert_eq!(console_size(&some), Some(TerminalSize { rows: 24, columns: 80 }));
        let none = process(r#"{"user": {}, "cwd": "/", "consoleSize": {"height": 0, "width": 0}}"#);
        assert_eq!(console_size(&none), None);
    }
}
