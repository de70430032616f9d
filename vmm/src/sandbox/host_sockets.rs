//! Sockets of the host that containers may connect to. Each is served by a port of the vsock device: every connection of the
//! guest to the port makes the VMM connect to the host's socket.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, UnixAddr, connect, socket};

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// Connects to the Unix stream socket that the `O_PATH` descriptor `path_fd` refers to.
///
/// # Errors
/// The server refuses, or its backlog is full: the call does not block.
pub(super) fn connect_to(path_fd: &OwnedFd) -> io::Result<OwnedFd> {
    let stream = socket(AddressFamily::Unix, SockType::Stream, FLAGS, None)?;
    connect(stream.as_raw_fd(), &UnixAddr::new(format!("/proc/self/fd/{}", path_fd.as_raw_fd()).as_str())?)?;
    Ok(stream)
}

/// Starts a TCP connection to [`agent::NAME_SERVER`] in the VMM's network namespace. If the server refuses, the connection
/// fails later.
///
/// # Errors
/// A system call failed.
pub(super) fn connect_to_name_server() -> io::Result<OwnedFd> {
    let stream = socket(AddressFamily::Inet, SockType::Stream, FLAGS, None)?;
    match connect(stream.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(agent::NAME_SERVER, 53))) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(stream),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn a_socket_is_reached_through_its_descriptor_after_a_rename() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let path_fd = open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        std::fs::rename(&path, directory.path().join("renamed")).unwrap();
        drop(connect_to(&path_fd).unwrap());
        let (mut stream, _) = listener.accept().unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
        drop(listener);
        assert_eq!(connect_to(&path_fd).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
