//! A pseudo-terminal, from its user's side.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs::File, io::IoSliceMut, mem::MaybeUninit, path::Path};

use nix::pty::openpty;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::TIMEOUT;

/// The master of a pseudo-terminal.
pub struct Terminal {
    master: File,
    /// The slave, if the test has opened the terminal itself.
    slave: Option<OwnedFd>,
    seen: String,
}

fn window(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Terminal {
    /// A new terminal of this size.
    ///
    /// # Panics
    ///
    /// Panics, like all functions here, if the system refuses.
    #[must_use]
    pub fn new(rows: u16, columns: u16) -> Self {
        let pty = openpty(None, None).expect("a pseudo-terminal");
        let terminal = Self { master: pty.master.into(), slave: Some(pty.slave), seen: String::new() };
        terminal.resize(rows, columns);
        terminal
    }

    /// Receives the terminal that a runtime sends to its console socket.
    ///
    /// # Panics
    ///
    /// Panics if it sends none in time.
    #[must_use]
    pub fn receive(listener: &UnixListener) -> Self {
        Self { master: receive_descriptor(listener).into(), slave: None, seen: String::new() }
    }

    /// Starts a program as the leader of a session with this terminal.
    ///
    /// # Panics
    ///
    /// Panics if it does not start.
    #[must_use]
    pub fn start(&self, command: &Command) -> Child {
        let slave = || Stdio::from(self.slave().try_clone().expect("a descriptor"));
        let mut leader = Command::new("setsid");
        leader.arg("--ctty").arg(command.get_program()).args(command.get_args());
        leader.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        leader.stdin(slave()).stdout(slave()).stderr(slave()).spawn().expect("the program starts")
    }

    fn slave(&self) -> &OwnedFd {
        self.slave.as_ref().expect("this side made the terminal")
    }

    /// The terminal's modes.
    ///
    /// # Panics
    ///
    /// Panics if the terminal is gone.
    #[must_use]
    pub fn modes(&self) -> Termios {
        tcgetattr(self.slave()).expect("the terminal's modes")
    }

    /// Changes the terminal's size.
    ///
    /// # Panics
    ///
    /// Panics if the terminal is gone.
    pub fn resize(&self, rows: u16, columns: u16) {
        tcsetwinsize(&self.master, window(rows, columns)).expect("the terminal's size");
    }

    /// Writes the keys that a user types.
    ///
    /// # Panics
    ///
    /// Panics if the terminal is gone.
    pub fn type_in(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("typing");
    }

    /// Waits until this text appears after the text of the previous call.
    ///
    /// # Panics
    ///
    /// Panics if it does not appear in time.
    pub fn expect(&mut self, wanted: &str) {
        let end = Instant::now() + TIMEOUT;
        loop {
            if let Some(at) = self.seen.find(wanted) {
                self.seen.drain(..at + wanted.len());
                return;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero() && self.read(left), "{wanted:?} did not appear; output so far: {:?}", self.seen);
        }
    }

    /// Waits until this text appears at the end of a line. Keys that are typed afterwards cannot be echoed before that line's end.
    ///
    /// # Panics
    ///
    /// Panics if it does not appear in time.
    pub fn expect_line(&mut self, wanted: &str) {
        self.expect(&format!("{wanted}\r\n"));
    }

    /// Waits for the prompt of root's shell, which then reads what is typed.
    ///
    /// # Panics
    ///
    /// Panics if it does not appear in time.
    pub fn expect_prompt(&mut self) {
        self.expect("# ");
    }

    /// Reads until the other side closes or writes nothing for this long; returns everything that was read.
    pub fn rest(&mut self, quiet: Duration) -> String {
        while self.read(quiet) {}
        std::mem::take(&mut self.seen)
    }

    /// Reads the available output. Returns false if the other side has closed or the timeout expires.
    fn read(&mut self, timeout: Duration) -> bool {
        let mut buffer = [0; 4096];
        if !readable(&self.master, timeout) {
            return false;
        }
        match self.master.read(&mut buffer) {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
                true
            }
        }
    }
}

fn readable(descriptor: &impl AsFd, timeout: Duration) -> bool {
    let timeout = Timespec::try_from(timeout).expect("a short time");
    poll(&mut [PollFd::new(descriptor, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0)
}

/// Receives the descriptor that a runtime sends to a socket of its caller.
///
/// # Panics
///
/// Panics if it sends none in time.
#[must_use]
pub fn receive_descriptor(listener: &UnixListener) -> OwnedFd {
    assert!(readable(listener, TIMEOUT), "no connection to the socket");
    let (stream, _) = listener.accept().expect("a connection to the socket");
    let mut name = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&stream, &mut [IoSliceMut::new(&mut name)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).expect("a message");
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    descriptor.expect("a descriptor came")
}

/// A console socket at this path.
///
/// # Panics
///
/// Panics if it cannot be created.
#[must_use]
pub fn console_socket(path: &Path) -> UnixListener {
    UnixListener::bind(path).expect("a console socket")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_started_program_has_the_terminal() {
        let mut terminal = Terminal::new(33, 77);
        let mut command = Command::new("sh");
        command.args(["-c", "tty >/dev/tty && stty size && read line && echo \"<$line>\""]);
        let mut child = terminal.start(&command);
        terminal.expect("/dev/pts/");
        terminal.expect_line("33 77");
        terminal.type_in("typed\n");
        terminal.expect_line("<typed>");
        assert!(child.wait().unwrap().success());
    }
}
