//! Terminals for callers that are not one: a pseudo-terminal whose master they get over their socket.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use agent::TerminalSize;
use nix::pty::{OpenptyResult, openpty};
use nix::unistd::ttyname;
use thiserror::Error;

use crate::host::scm_rights::{Receiver, RightsError};
use crate::terminal::tty::{TerminalError, set_raw, set_size};

/// Why the caller got no terminal.
#[derive(Debug, Error)]
pub(crate) enum ConsoleError {
    #[error(transparent)]
    Socket(#[from] RightsError),
    #[error("make a pseudo-terminal")]
    Make(#[source] io::Error),
    #[error(transparent)]
    Terminal(#[from] TerminalError),
}

/// Makes a pseudo-terminal, sends its master to the listener at `path`, and returns its slave, in raw mode: the
/// terminal that edits lines is the one in the guest.
pub(crate) fn make(path: &Path, size: Option<TerminalSize>) -> Result<OwnedFd, ConsoleError> {
    let listener = Receiver::dial(path)?;
    let OpenptyResult { master, slave } = openpty(None, None).map_err(|error| ConsoleError::Make(error.into()))?;
    set_raw(&slave)?;
    if let Some(size) = size {
        set_size(&slave, size)?;
    }
    // The terminal's name comes with it.
    let name = ttyname(&slave).map_err(|error| ConsoleError::Make(error.into()))?;
    listener.send("the terminal", master.as_fd(), name.as_os_str().as_encoded_bytes())?;
    Ok(slave)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::host::scm_rights::tests::receive;
    use crate::terminal::tty;

    #[test]
    fn the_listener_gets_the_other_end_of_the_terminal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let size = TerminalSize { rows: 7, columns: 9 };
        let slave = make(&path, Some(size)).unwrap();
        let (mut master, name) = receive(&listener);
        assert!(name.starts_with("/dev/pts/"), "{name}");
        assert_eq!(tty::size(&master), Some(size));
        File::from(slave).write_all(b"a\n").unwrap();
        let mut got = [0; 2];
        master.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"a\n", "no line editing on the way");
    }

    #[test]
    fn nobody_listening_is_an_error_with_the_path() {
        let error = make(Path::new("/nonexistent"), None).unwrap_err();
        assert_eq!(error.to_string(), "dial unix /nonexistent");
    }
}
