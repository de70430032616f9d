//! Which descriptors a container's process gets its standard streams from.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use agent::TerminalSize;
use oci_spec::runtime::Process;
use thiserror::Error;
use vmm::control::StdioFds;

use crate::terminal::console::{self, ConsoleError};
use crate::terminal::tty::{RawTerminal, TerminalError};

/// Why a process gets no standard streams; in runc's words where it has some.
#[derive(Debug, Error)]
pub(crate) enum StdioError {
    #[error("cannot allocate tty if vmrt will detach without setting console socket")]
    DetachedTerminal,
    #[error("cannot use console socket if vmrt will not detach or allocate tty")]
    UselessSocket,
    #[error("pass the standard streams on")]
    Duplicate(#[source] io::Error),
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    #[error(transparent)]
    Console(#[from] ConsoleError),
}

/// The streams of one process.
#[derive(Debug)]
pub(crate) struct ProcessStdio {
    /// How the VMM is to understand the descriptors.
    pub(crate) kind: StdioFds,
    fds: Vec<OwnedFd>,
    /// The command's own terminal, if that is what the process is connected to.
    pub(crate) terminal: Option<RawTerminal>,
    /// Whether the descriptors are a terminal that was made for the caller.
    console: bool,
}

/// How a process is to be connected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StdioOptions<'a> {
    pub(crate) terminal: bool,
    pub(crate) detach: bool,
    pub(crate) console_socket: Option<&'a Path>,
    /// Size a new terminal starts with.
    pub(crate) size: Option<TerminalSize>,
}

impl ProcessStdio {
    /// Opens what `wanted` asks for.
    pub(crate) fn open(wanted: StdioOptions) -> Result<Self, StdioError> {
        let socket = wanted.console_socket.filter(|path| !path.as_os_str().is_empty());
        match (wanted.terminal, wanted.detach, socket) {
            (false, _, Some(_)) | (true, false, Some(_)) => Err(StdioError::UselessSocket),
            (true, true, None) => Err(StdioError::DetachedTerminal),
            (true, true, Some(path)) => Self::console_of(&console::make(path, wanted.size)?, wanted.size),
            (true, false, None) => Self::own_terminal(wanted.size),
            (false, _, None) => Self::inherited(),
        }
    }

    /// The descriptors in the order in which they are passed.
    pub(crate) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.fds.iter().map(AsFd::as_fd).collect()
    }

    /// The terminal that was made for the caller, for the process that tells its size.
    pub(crate) fn console(&self) -> Option<BorrowedFd<'_>> {
        self.fds.first().filter(|_| self.console).map(AsFd::as_fd)
    }

    /// That terminal alone; everything else is closed.
    pub(crate) fn into_console(self) -> Option<OwnedFd> {
        self.fds.into_iter().next().filter(|_| self.console)
    }

    fn own_terminal(size: Option<TerminalSize>) -> Result<Self, StdioError> {
        let fds = duplicate([io::stdin().as_fd(), io::stdout().as_fd()])?;
        let terminal = RawTerminal::acquire()?;
        // Into a pipe or a file goes what the process writes, as with runc, and no carriage returns.
        let kind = StdioFds::Terminal { size: terminal.size().or(size), bare_lines: !io::stdout().is_terminal() };
        Ok(Self { kind, fds, terminal: Some(terminal), console: false })
    }

    fn inherited() -> Result<Self, StdioError> {
        let fds = duplicate([io::stdin().as_fd(), io::stdout().as_fd(), io::stderr().as_fd()])?;
        let kind = StdioFds::Streams { stdin: true, stdout: true, stderr: true };
        Ok(Self { kind, fds, terminal: None, console: false })
    }

    fn console_of(slave: &OwnedFd, size: Option<TerminalSize>) -> Result<Self, StdioError> {
        let fds = duplicate([slave.as_fd(), slave.as_fd()])?;
        Ok(Self { kind: StdioFds::Terminal { size, bare_lines: false }, fds, terminal: None, console: true })
    }
}

fn duplicate<const N: usize>(fds: [BorrowedFd; N]) -> Result<Vec<OwnedFd>, StdioError> {
    let copies = fds.iter().map(BorrowedFd::try_clone_to_owned);
    copies.collect::<io::Result<_>>().map_err(StdioError::Duplicate)
}

/// The size a process's specification gives its terminal.
pub(crate) fn console_size(process: &Process) -> Option<TerminalSize> {
    let size = process.console_size()?;
    let (rows, columns) = (u16::try_from(size.height()).ok()?, u16::try_from(size.width()).ok()?);
    (rows > 0 && columns > 0).then_some(TerminalSize { rows, columns })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(terminal: bool, detach: bool, console_socket: Option<&Path>) -> Result<ProcessStdio, StdioError> {
        ProcessStdio::open(StdioOptions { terminal, detach, console_socket, size: None })
    }

    #[test]
    fn a_terminal_needs_somebody_at_its_other_end() {
        let path = Some(Path::new("/nonexistent"));
        assert!(matches!(wanted(true, true, None), Err(StdioError::DetachedTerminal)));
        assert!(matches!(wanted(false, true, path), Err(StdioError::UselessSocket)));
        assert!(matches!(wanted(true, false, path), Err(StdioError::UselessSocket)));
        assert!(matches!(wanted(true, true, path), Err(StdioError::Console(_))));
        assert!(matches!(wanted(true, true, Some(Path::new(""))), Err(StdioError::DetachedTerminal)));
    }

    #[test]
    fn without_a_terminal_the_streams_are_the_commands_own() {
        let stdio = wanted(false, true, None).unwrap();
        assert_eq!(stdio.fds().len(), stdio.kind.count());
        assert!(stdio.console().is_none() && stdio.terminal.is_none());
    }

    #[test]
    fn a_size_of_nothing_is_none() {
        let process = |json: &str| serde_json::from_str::<Process>(json).unwrap();
        let some = process(r#"{"user": {}, "cwd": "/", "consoleSize": {"height": 24, "width": 80}}"#);
        assert_eq!(console_size(&some), Some(TerminalSize { rows: 24, columns: 80 }));
        let none = process(r#"{"user": {}, "cwd": "/", "consoleSize": {"height": 0, "width": 0}}"#);
        assert_eq!(console_size(&none), None);
    }
}
