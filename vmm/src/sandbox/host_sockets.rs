//! Sockets of the host that containers may connect to. Each is served by a port of the vsock device: every connection of the
//! guest to the port makes the VMM connect to the host's socket.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, UnixAddr, connect, socket};

use crate::fs::ProcFds;
use crate::jail::seccomp;

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// Size of the thread's stack in bytes.
const STACK: usize = 128 << 10;

/// A socket of the host.
#[derive(Clone, Debug)]
pub enum HostSocket {
    /// The Unix stream socket that an `O_PATH` descriptor refers to.
    Unix(Arc<OwnedFd>),
    /// The name server at [`agent::NAME_SERVER`] in the VMM's network namespace, over TCP.
    NameServer,
}

/// A request to connect, and where the result goes.
struct Job(HostSocket, SyncSender<io::Result<OwnedFd>>);

/// Connects to sockets of the host, on a thread of its own: to write to a socket's file takes a capability that the event loop does
/// not have. All clones refer to the same thread, which ends with them.
#[derive(Clone, Debug)]
pub struct Connector(Sender<Job>);

impl Connector {
    /// Starts the thread, whose working directory becomes `proc_fds`.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(proc_fds: ProcFds) -> io::Result<Self> {
        let (sender, jobs) = channel();
        let thread = std::thread::Builder::new().name("sockets".to_owned()).stack_size(STACK);
        thread.spawn(move || {
            if let Err(error) = serve(&jobs, &proc_fds) {
                tracing::error!(%error, "containers cannot connect to sockets of the host");
            }
        })?;
        Ok(Self(sender))
    }

    /// Connects to `socket` and waits for the result.
    ///
    /// # Errors
    /// The server refuses, or its backlog is full: the connector does not wait for a server. Over TCP, a server that refuses makes
    /// the connection fail later.
    pub(super) fn connect(&self, socket: HostSocket) -> io::Result<OwnedFd> {
        let ended = || io::Error::other("the thread that connects to sockets has ended");
        let (result, receiver) = sync_channel(1);
        self.0.send(Job(socket, result)).map_err(|_| ended())?;
        receiver.recv().map_err(|_| ended())?
    }
}

fn serve(jobs: &Receiver<Job>, proc_fds: &ProcFds) -> io::Result<()> {
    unshare(CloneFlags::CLONE_FS)?;
    rustix::process::fchdir(proc_fds)?;
    seccomp::confine(seccomp::ThreadClass::HostSockets)?;
    for Job(socket, result) in jobs {
        let connected = match &socket {
            HostSocket::Unix(path_fd) => connect_to(path_fd),
            HostSocket::NameServer => connect_to_name_server(),
        };
        // The event loop waits for the result, unless it has ended.
        let _ = result.send(connected);
    }
    Ok(())
}

/// Connects to a Unix socket by its name in the working directory, which is `/proc/self/fd`.
fn connect_to(path_fd: &OwnedFd) -> io::Result<OwnedFd> {
    let stream = socket(AddressFamily::Unix, SockType::Stream, FLAGS, None)?;
    connect(stream.as_raw_fd(), &UnixAddr::new(path_fd.as_raw_fd().to_string().as_str())?)?;
    Ok(stream)
}

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
    fn a_socket_is_reached_through_its_descriptor_after_a_rename() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let path_fd = open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        std::fs::rename(&path, directory.path().join("renamed")).unwrap();
        let connector = Connector::start(ProcFds::open().unwrap()).unwrap();
        let socket = HostSocket::Unix(Arc::new(path_fd));
        drop(connector.connect(socket.clone()).unwrap());
        let (mut stream, _) = listener.accept().unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
        drop(listener);
        assert_eq!(connector.connect(socket).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
