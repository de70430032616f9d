//! File descriptors sent to a caller's Unix socket (`SCM_RIGHTS`, unix(7)).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};
use thiserror::Error;

use crate::host::process::HostProcess;

/// The reason why a descriptor was not sent.
#[derive(Debug, Error)]
pub(crate) enum RightsError {
    #[error("dial unix {}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("send {what} to {}", path.display())]
    Send { what: &'static str, path: PathBuf, source: io::Error },
}

/// A connection to a listener that receives descriptors.
#[derive(Debug)]
pub(crate) struct Receiver {
    path: PathBuf,
    socket: OwnedFd,
}

impl Receiver {
    /// Connects to the listener at `path`.
    pub(crate) fn dial(path: &Path) -> Result<Self, RightsError> {
        let connected = || {
            let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
            Ok(fd)
        };
        let socket = connected()
            .map_err(|error: nix::Error| RightsError::Connect { path: path.into(), source: error.into() })?;
        Ok(Self { path: path.into(), socket })
    }

    /// Sends one message with the descriptor `fd` and the text that runc sends with it. `what` describes the descriptor in an
    /// error.
    pub(crate) fn send(&self, what: &'static str, fd: BorrowedFd, text: &[u8]) -> Result<(), RightsError> {
        let fds = [fd.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        let sent = sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(text)], &rights, MsgFlags::MSG_NOSIGNAL, None);
        sent.map(drop).map_err(|error| RightsError::Send { what, path: self.path.clone(), source: error.into() })
    }
}

/// Sends a pidfd of `process` to the listener at `path`. `kind` is runc's term for the process: `standard` for the first process
/// of a container, `setns` for a further one.
pub(crate) fn send_pidfd(path: &Path, process: HostProcess, kind: &str) -> Result<(), RightsError> {
    let receiver = Receiver::dial(path)?;
    let opened = process.open().and_then(|pidfd| pidfd.ok_or_else(|| io::ErrorKind::NotFound.into()));
    let pidfd = opened.map_err(|source| RightsError::Send { what: "the pidfd", path: path.into(), source })?;
    receiver.send("the pidfd", pidfd.as_fd(), kind.as_bytes())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::File;
    use std::io::IoSliceMut;
    use std::os::fd::FromRawFd;
    use std::os::unix::net::UnixListener;

    use nix::sys::socket::{ControlMessageOwned, recvmsg};

    use super::*;

    /// Accepts a client and returns the descriptor and the text that it sends.
    pub(crate) fn receive(listener: &UnixListener) -> (File, String) {
        let (stream, _) = listener.accept().unwrap();
        let mut space = nix::cmsg_space!([i32; 1]);
        let mut text = [0; 64];
        let mut parts = [IoSliceMut::new(&mut text)];
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
        let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs().unwrap().next() else {
            panic!("no descriptor")
        };
        let length = message.bytes;
        // SAFETY: the kernel created this descriptor for this message, and nothing else owns it.
        let file = unsafe { File::from_raw_fd(fds[0]) };
        (file, String::from_utf8_lossy(&text[..length]).into_owned())
    }

    #[test]
    fn the_pidfd_of_a_process_is_sent_with_its_kind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pidfd.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let own = HostProcess::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        send_pidfd(&path, own, "standard").unwrap();
        let (pidfd, kind) = receive(&listener);
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
        assert!(info.lines().any(|line| line == format!("Pid:\t{}", own.pid)), "{info}");
        assert_eq!(kind, "standard");
        assert!(matches!(send_pidfd(&path, HostProcess::NONE, "standard"), Err(RightsError::Send { .. })));
    }
}
