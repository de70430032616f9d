//! The terminal that a command was started from.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use agent::TerminalSize;
use nix::libc;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use thiserror::Error;

/// Why an operation on a terminal failed.
#[derive(Debug, Error)]
pub(crate) enum TerminalError {
    #[error("open /dev/tty")]
    NoTerminal(#[source] io::Error),
    #[error("{step}")]
    Io { step: &'static str, source: io::Error },
}

/// Returns a function that makes an error about `step`, for `map_err`.
fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> TerminalError {
    move |source| TerminalError::Io { step, source: source.into() }
}

/// The caller's terminal in raw mode, so that every key reaches the container. Dropping it restores the original mode.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    tty: OwnedFd,
    original_mode: Termios,
}

impl RawTerminal {
    /// Opens the terminal behind the first standard stream that has one, or else the controlling terminal, and sets raw mode.
    pub(crate) fn acquire() -> Result<Self, TerminalError> {
        let tty = open_terminal()?;
        let original_mode = tcgetattr(&tty).map_err(failed("read the terminal's mode"))?;
        let terminal = Self { tty, original_mode };
        terminal.set_raw()?;
        Ok(terminal)
    }

    /// Sets raw mode: at first, and again when the command continues after a stop.
    pub(crate) fn set_raw(&self) -> Result<(), TerminalError> {
        set_raw(&self.tty)
    }

    /// Restores the original mode.
    pub(crate) fn restore(&self) {
        // Best effort: `drop` cannot report an error, and no other mode would be better.
        let _ = tcsetattr(&self.tty, SetArg::TCSADRAIN, &self.original_mode);
    }

    /// The size of the terminal, if it has one.
    pub(crate) fn size(&self) -> Option<TerminalSize> {
        size(&self.tty)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        self.restore();
    }
}

fn open_terminal() -> Result<OwnedFd, TerminalError> {
    let streams = [io::stdin().as_fd(), io::stdout().as_fd(), io::stderr().as_fd()].map(|fd| fd.try_clone_to_owned());
    let mut terminals = streams.into_iter().flatten().filter(IsTerminal::is_terminal);
    match terminals.next() {
        Some(fd) => Ok(fd),
        None => {
            let tty = File::options().read(true).write(true).open("/dev/tty");
            Ok(tty.map_err(TerminalError::NoTerminal)?.into())
        }
    }
}

/// Sets raw mode: the terminal passes every byte on unchanged. The terminal at the other end handles lines and special keys.
pub(crate) fn set_raw(tty: &impl AsFd) -> Result<(), TerminalError> {
    let mut mode = tcgetattr(tty).map_err(failed("read the terminal's mode"))?;
    cfmakeraw(&mut mode);
    tcsetattr(tty, SetArg::TCSADRAIN, &mode).map_err(failed("set the terminal's mode"))
}

/// The size of a terminal. `None` if `tty` is not a terminal or has no size.
pub(crate) fn size(tty: &impl AsFd) -> Option<TerminalSize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes one `winsize`, and the pointer is valid for that during the call.
    let result = unsafe { libc::ioctl(tty.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_row > 0 && size.ws_col > 0)
        .then_some(TerminalSize { rows: size.ws_row, columns: size.ws_col })
}

/// Sets the size of a terminal.
pub(crate) fn set_size(tty: &impl AsFd, size: TerminalSize) -> Result<(), TerminalError> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads one `winsize`, and the pointer is valid for that during the call.
    let result = unsafe { libc::ioctl(tty.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    nix::errno::Errno::result(result).map(drop).map_err(failed("set the terminal's size"))
}

/// Makes `tty` the controlling terminal of this session, so that the caller gets `SIGWINCH`. The caller must be the session leader.
pub(crate) fn make_controlling(tty: &impl AsFd) -> nix::Result<()> {
    // SAFETY: `TIOCSCTTY` takes no pointer, and `tty` borrows an open descriptor.
    nix::errno::Errno::result(unsafe { libc::ioctl(tty.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

#[cfg(test)]
mod tests {
    use nix::pty::openpty;
    use nix::sys::termios::LocalFlags;

    use super::*;

    #[test]
    fn dropping_restores_the_mode() {
        let pty = openpty(None, None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        let terminal = RawTerminal { tty: pty.slave.try_clone().unwrap(), original_mode: before.clone() };
        terminal.set_raw().unwrap();
        let raw = tcgetattr(&pty.slave).unwrap();
        assert!(!raw.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG));
        drop(terminal);
        assert_eq!(tcgetattr(&pty.slave).unwrap().local_flags, before.local_flags);
    }

    #[test]
    fn a_terminal_reports_the_size_that_was_set() {
        let pty = openpty(None, None).unwrap();
        assert_eq!(size(&pty.slave), None);
        let large = TerminalSize { rows: 50, columns: 132 };
        set_size(&pty.slave, large).unwrap();
        assert_eq!(size(&pty.master), Some(large));
        let file = tempfile::tempfile().unwrap();
        assert_eq!(size(&file), None);
        assert!(set_size(&file, large).is_err());
    }
}
