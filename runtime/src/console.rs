//! Terminals for callers that are not one: a pseudo-terminal whose master they get over their socket.

use std::io;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use agent::TerminalSize;
use nix::pty::{OpenptyResult, openpty};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};
use nix::unistd::ttyname;
use thiserror::Error;

use crate::terminal::{TerminalError, set_raw, set_size};

/// Why the caller got no terminal.
#[derive(Debug, Error)]
pub(crate) enum ConsoleError {
    #[error("dial unix {}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("send the terminal to {}", path.display())]
    Send { path: PathBuf, source: io::Error },
    #[error("make a pseudo-terminal")]
    Make(#[source] io::Error),
    #[error(transparent)]
    Terminal(#[from] TerminalError),
}

/// Makes a pseudo-terminal, sends its master to the listener at `path`, and returns its slave, in raw mode: the
/// terminal that edits lines is the one in the guest.
pub(crate) fn make(path: &Path, size: Option<TerminalSize>) -> Result<OwnedFd, ConsoleError> {
    let listener = dial(path).map_err(|error| ConsoleError::Connect { path: path.into(), source: error.into() })?;
    let OpenptyResult { master, slave } = openpty(None, None).map_err(|error| ConsoleError::Make(error.into()))?;
    set_raw(&slave)?;
    if let Some(size) = size {
        set_size(&slave, size)?;
    }
    send(&listener, &master, &slave).map_err(|error| ConsoleError::Send { path: path.into(), source: error.into() })?;
    Ok(slave)
}

fn dial(path: &Path) -> nix::Result<OwnedFd> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

/// One message: the descriptor, and as its text the terminal's name, as runc sends it.
fn send(to: &OwnedFd, master: &OwnedFd, slave: &OwnedFd) -> nix::Result<()> {
    let name = ttyname(slave)?;
    let fds = [master.as_raw_fd()];
    let text = [IoSlice::new(name.as_os_str().as_encoded_bytes())];
    sendmsg::<()>(to.as_raw_fd(), &text, &[ControlMessage::ScmRights(&fds)], MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{IoSliceMut, Read, Write};
    use std::os::fd::FromRawFd;
    use std::os::unix::net::UnixListener;

    use nix::sys::socket::{ControlMessageOwned, recvmsg};

    use super::*;
    use crate::terminal;

    fn receive(listener: &UnixListener) -> (File, String) {
        let (stream, _) = listener.accept().unwrap();
        let mut space = nix::cmsg_space!([i32; 1]);
        let mut text = [0; 64];
        let mut parts = [IoSliceMut::new(&mut text)];
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
        let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs().unwrap().next() else {
            panic!("no descriptor")
        };
        let length = message.bytes;
        // SAFETY: the kernel made this descriptor for this message, and nothing else owns it.
        let master = unsafe { File::from_raw_fd(fds[0]) };
        (master, String::from_utf8_lossy(&text[..length]).into_owned())
    }

    #[test]
    fn the_listener_gets_the_other_end_of_the_terminal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let size = TerminalSize { rows: 7, columns: 9 };
        let slave = make(&path, Some(size)).unwrap();
        let (mut master, name) = receive(&listener);
        assert!(name.starts_with("/dev/pts/"), "{name}");
        assert_eq!(terminal::size(&master), Some(size));
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
