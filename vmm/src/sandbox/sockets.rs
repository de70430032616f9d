//! Sockets of the host that containers may connect to: each is a port of the vsock device, on which every connection of the
//! guest is led to one of its own to the host's socket.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, OwnedFd};

use agent::{AttachedFile, ProcessId, SpecialFile, SpecialKind};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, UnixAddr, connect, socket};

use super::Sandbox;

impl Sandbox {
    /// Opens a port for each socket, `O_PATH` descriptors of which are `sockets`; they are closed with the container whose
    /// first process is `process`.
    pub(super) fn attach_files(
        &mut self,
        process: &ProcessId,
        files: Vec<SpecialFile>,
        sockets: Vec<OwnedFd>,
    ) -> Vec<AttachedFile> {
        let mut sockets = sockets.into_iter();
        let mut attach = |file: SpecialFile| {
            let socket = if file.kind == SpecialKind::Socket { sockets.next() } else { None };
            let port = socket.map(|socket| self.ports.serve(Box::new(move || connect_to(&socket))));
            AttachedFile { file, port }
        };
        let attached: Vec<_> = files.into_iter().map(&mut attach).collect();
        self.processes.lend_ports(process, attached.iter().filter_map(|file| file.port));
        attached
    }

    /// Opens a port that leads to the name server of the VMM's network namespace, until the container is gone whose first
    /// process is `process`.
    pub(super) fn attach_name_server(&mut self, process: &ProcessId) -> u32 {
        let port = self.ports.serve(Box::new(connect_to_name_server));
        self.processes.lend_ports(process, [port].into_iter());
        port
    }
}

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// Connects without waiting for a server whose queue is full: that counts as refused.
fn connect_to(place: &OwnedFd) -> io::Result<OwnedFd> {
    let stream = socket(AddressFamily::Unix, SockType::Stream, FLAGS, None)?;
    connect(stream.as_raw_fd(), &UnixAddr::new(format!("/proc/self/fd/{}", place.as_raw_fd()).as_str())?)?;
    Ok(stream)
}

/// Connects by TCP. Who refuses it closes the connection a moment later.
fn connect_to_name_server() -> io::Result<OwnedFd> {
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
    fn a_socket_is_reached_by_its_place_wherever_it_was_moved() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let place = open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        std::fs::rename(&path, directory.path().join("elsewhere")).unwrap();
        drop(connect_to(&place).unwrap());
        let (mut stream, _) = listener.accept().unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
        drop(listener);
        assert_eq!(connect_to(&place).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
