//! The terminal a command was started from.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use agent::TerminalSize;
use nix::libc;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use thiserror::Error;

/// Why there is no terminal to work with.
#[derive(Debug, Error)]
pub(crate) enum TerminalError {
    #[error("open /dev/tty")]
    None(#[source] io::Error),
    #[error("{step}")]
    Io { step: &'static str, source: io::Error },
}

/// Makes an error that names what was done to a terminal.
pub(crate) fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> TerminalError {
    move |source| TerminalError::Io { step, source: source.into() }
}

/// The command's own terminal in raw mode, so that every key reaches the container. Dropping it restores the mode.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    tty: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Takes the terminal that one of the standard streams is, or else the controlling one.
    pub(crate) fn acquire() -> Result<Self, TerminalError> {
        let tty = own_terminal()?;
        let before = tcgetattr(&tty).map_err(failed("read the terminal's mode"))?;
        let terminal = Self { tty, before };
        terminal.set_raw()?;
        Ok(terminal)
    }

    /// Sets raw mode, the first time or again after the command was stopped.
    pub(crate) fn set_raw(&self) -> Result<(), TerminalError> {
        set_raw(&self.tty)
    }

    /// Sets the mode that was found.
    pub(crate) fn restore(&self) {
        // There is no better mode to fall back on, and nobody to tell.
        let _ = tcsetattr(&self.tty, SetArg::TCSADRAIN, &self.before);
    }

    /// Its size, unless it has none.
    pub(crate) fn size(&self) -> Option<TerminalSize> {
        size(&self.tty)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        self.restore();
    }
}

fn own_terminal() -> Result<OwnedFd, TerminalError> {
    let streams = [io::stdin().as_fd(), io::stdout().as_fd(), io::stderr().as_fd()].map(|fd| fd.try_clone_to_owned());
    let mut terminals = streams.into_iter().flatten().filter(IsTerminal::is_terminal);
    match terminals.next() {
        Some(fd) => Ok(fd),
        None => {
            let tty = File::options().read(true).write(true).open("/dev/tty");
            Ok(tty.map_err(TerminalError::None)?.into())
        }
    }
}

/// Lets every byte through unchanged: what lines and special keys are is decided at the other end.
pub(crate) fn set_raw(tty: &impl AsFd) -> Result<(), TerminalError> {
    let mut mode = tcgetattr(tty).map_err(failed("read the terminal's mode"))?;
    cfmakeraw(&mut mode);
    tcsetattr(tty, SetArg::TCSADRAIN, &mode).map_err(failed("set the terminal's mode"))
}

/// Size of a terminal; `None` if it is none or does not know.
pub(crate) fn size(tty: &impl AsFd) -> Option<TerminalSize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes one `winsize`, to which the pointer is valid for the call.
    let result = unsafe { libc::ioctl(tty.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_row > 0 && size.ws_col > 0)
        .then_some(TerminalSize { rows: size.ws_row, columns: size.ws_col })
}

/// Gives a terminal a size.
pub(crate) fn set_size(tty: &impl AsFd, size: TerminalSize) -> Result<(), TerminalError> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads one `winsize`, to which the pointer is valid for the call.
    let result = unsafe { libc::ioctl(tty.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    nix::errno::Errno::result(result).map(drop).map_err(failed("set the terminal's size"))
}

/// Makes a terminal that of this session, whose leader the caller is, so that it is told of changes of size.
pub(crate) fn make_controlling(tty: &impl AsFd) -> nix::Result<()> {
    // SAFETY: takes no pointer; the descriptor is open.
    nix::errno::Errno::result(unsafe { libc::ioctl(tty.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

#[cfg(test)]
mod tests {
    use nix::pty::openpty;
    use nix::sys::termios::LocalFlags;

    use super::*;

    #[test]
    fn the_mode_is_restored() {
        let pty = openpty(None, None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        let terminal = RawTerminal { tty: pty.slave.try_clone().unwrap(), before: before.clone() };
        terminal.set_raw().unwrap();
        let raw = tcgetattr(&pty.slave).unwrap();
        assert!(!raw.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG));
        drop(terminal);
        assert_eq!(tcgetattr(&pty.slave).unwrap().local_flags, before.local_flags);
    }

    #[test]
    fn a_size_is_kept_and_nothing_is_no_size() {
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
