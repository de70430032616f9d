//! Terminals for callers that have none: vmrt creates a pseudo-terminal and sends its master over the caller's console socket.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use agent::TerminalSize;
use nix::pty::{OpenptyResult, openpty};
use nix::unistd::ttyname;
use thiserror::Error;

use crate::host::scm_rights::{Receiver, RightsError};
use crate::terminal::tty::{TerminalError, set_raw, set_size};

/// Why the terminal cannot be created.
#[derive(Debug, Error)]
pub(crate) enum ConsoleError {
    #[error(transparent)]
    Socket(#[from] RightsError),
    #[error("create a pseudo-terminal")]
    Create(#[source] io::Error),
    #[error(transparent)]
    Terminal(#[from] TerminalError),
}

/// Creates a pseudo-terminal, sends its master to the listener at `path` and returns its slave. The slave is in raw mode because the
/// terminal in the guest does the line editing.
pub(crate) fn create(path: &Path, size: Option<TerminalSize>) -> Result<OwnedFd, ConsoleError> {
    let listener = Receiver::dial(path)?;
    let OpenptyResult { master, slave } = openpty(None, None).map_err(|error| ConsoleError::Create(error.into()))?;
    set_raw(&slave)?;
    if let Some(size) = size {
        set_size(&slave, size)?;
    }
    // runc sends the name of the terminal with the descriptor.
    let name = ttyname(&slave).map_err(|error| ConsoleError::Create(error.into()))?;
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
    fn the_listener_receives_the_master() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let size = TerminalSize { rows: 7, columns: 9 };
        let slave = create(&path, Some(size)).unwrap();
        let (mut master, name) = receive(&listener);
        assert!(name.starts_with("/dev/pts/"), "{name}");
        assert_eq!(tty::size(&master), Some(size));
        File::from(slave).write_all(b"a\n").unwrap();
        let mut received = [0; 2];
        master.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"a\n", "the terminal is in raw mode");
    }

    #[test]
    fn a_missing_listener_is_an_error_with_the_path() {
        let error = create(Path::new("/nonexistent"), None).unwrap_err();
        assert_eq!(error.to_string(), "dial unix /nonexistent");
    }
}
