//! Access of a container to Docker's name server, which listens at 127.0.0.11 in the network namespace of the sandbox
//! on the host.
//!
//! Two sockets in the container's network namespace, one for datagrams and one for connections, represent the name
//! server. Both have a port that the kernel chooses, because port 53 belongs to the container, which may run its own
//! name server. BPF programs of the container's cgroup translate between port 53 and that port. Towards the host
//! everything is DNS over TCP (RFC 7766): a connection is forwarded as it is, and each datagram uses a connection of
//! its own.

pub(crate) mod dns;
pub(crate) mod queries;
pub(crate) mod redirect;

use std::net::SocketAddrV4;
use std::os::fd::{BorrowedFd, OwnedFd};

use agent::NAME_SERVER;
use rustix::event::epoll::EventFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::namespace;
use crate::error::Error;
use crate::events::{Poll, Source};
use crate::streams::listener::Listener;
use crate::sys::interface;

/// Length of the queue of connections that are not accepted yet.
const BACKLOG: i32 = 16;

/// The sockets that represent the name server in one container.
pub(crate) struct NameServer {
    id: u32,
    /// The port of the host that leads to the name server.
    port: u32,
    datagrams: OwnedFd,
    /// Receives connections.
    pub(crate) listener: Listener,
}

impl NameServer {
    /// Gives the processes of `cgroup` access to the name server behind `port` of the host, in the network namespace of
    /// `process`, a pidfd. `proc` is the guest's `/proc`.
    pub(crate) fn new(
        proc: BorrowedFd<'_>,
        process: BorrowedFd<'_>,
        cgroup: BorrowedFd<'_>,
        port: u32,
        poll: &Poll,
    ) -> Result<Self, Error> {
        let sockets = namespace::run_in(proc, process, || {
            // The address needs the loopback interface, which the container's process may not have brought up yet.
            interface::bring_up(b"lo")
                .and_then(|()| make_sockets())
                .map_err(Error::at("make the sockets of the name server"))
        })?;
        redirect::attach(cgroup, sockets.port).map_err(Error::at("redirect the container to its name server"))?;
        let listener = Listener::new(sockets.connections, port, poll)?;
        let id = poll.next_id();
        poll.watch(&sockets.datagrams, Source::Queries(id), EventFlags::IN)?;
        Ok(Self { id, port, datagrams: sockets.datagrams, listener })
    }

    /// The id in [`Source::Queries`].
    pub(crate) fn id(&self) -> u32 {
        self.id
    }
}

struct Sockets {
    datagrams: OwnedFd,
    connections: OwnedFd,
    /// The port of both.
    port: u16,
}

/// Makes the sockets in the network namespace of the caller.
fn make_sockets() -> rustix::io::Result<Sockets> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connections = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&connections, &SocketAddrV4::new(NAME_SERVER, 0))?;
    let address = SocketAddrV4::try_from(rustix::net::getsockname(&connections)?)?;
    rustix::net::listen(&connections, BACKLOG)?;
    let datagrams = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    rustix::net::bind(&datagrams, &address)?;
    Ok(Sockets { datagrams, connections, port: address.port() })
}
