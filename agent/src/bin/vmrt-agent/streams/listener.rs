//! Sockets of the guest whose connections are forwarded to a port of the host.

use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::Streams;
use super::host::Host;
use super::pump::Pump;
use crate::error::Error;
use crate::events::{Poll, Source};
use crate::machine::log;
use crate::sys::files::duplicate;

/// Upper limit of open connections of all listeners. The agent's descriptors are limited, and each connection needs
/// four.
const MAX_CONNECTIONS: usize = 96;

/// A listening socket and the port of the host that its connections are forwarded to.
pub(crate) struct Listener {
    id: u32,
    port: u32,
    socket: OwnedFd,
}

impl Listener {
    /// Watches `socket`, which listens and does not block.
    pub(crate) fn new(socket: OwnedFd, port: u32, poll: &Poll) -> Result<Self, Error> {
        let id = poll.next_id();
        poll.watch(&socket, Source::Listener(id), EventFlags::IN)?;
        Ok(Self { id, port, socket })
    }

    /// The id in [`Source::Listener`].
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Accepts all pending connections and forwards each to the host.
    pub(crate) fn accept_pending(&self, host: &Host, poll: &Poll, streams: &mut Streams) {
        loop {
            match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(connection) => log::warn(self.forward(connection, host, poll, streams)),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return,
                Err(error) => return log::warn(Err(Error::at("accept a connection to a socket of the host")(error))),
            }
        }
    }

    /// On an error the connection is closed, which the client notices.
    fn forward(&self, connection: OwnedFd, host: &Host, poll: &Poll, streams: &mut Streams) -> Result<(), Error> {
        let step = || format!("connect to a socket of the host by port {}", self.port);
        if streams.without_process() >= 2 * MAX_CONNECTIONS {
            return Err(Error::at(step())(Errno::MFILE));
        }
        let host = host.connect(self.port).map_err(Error::at(step()))?;
        let (connection_writer, host_writer) = (duplicate(&connection)?, duplicate(&host)?);
        streams.add(poll, Pump::new(connection, host_writer), None)?;
        streams.add(poll, Pump::new(host, connection_writer), None).map(drop)
    }
}
