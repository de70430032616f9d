//! The control connection to the VMM.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent::frame::{self, FrameError};
use agent::{Call, FromAgent};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use thiserror::Error;
use vsock::{VMADDR_CID_HOST, VsockAddr};

use crate::sys;

/// Seconds the VMM may take to accept a connection. The kernel's own limit is two, which a host that is busy writing to
/// its disk exceeds; a VMM that does not answer at all is for the host to notice.
const CONNECT_LIMIT: i64 = 60;

/// Why the connection is no longer of use. The guest cannot go on without it.
#[derive(Debug, Error)]
pub(crate) enum ConnectionError {
    /// The VMM does not accept the connection.
    #[error("connect to the VMM")]
    Connect(#[source] Errno),
    /// The VMM sent what is no request, or more than a frame may hold.
    #[error("receive a request")]
    Frame(#[from] FrameError),
    /// Reading or writing failed.
    #[error("use the control connection")]
    Io(#[from] Errno),
    /// The VMM closed it.
    #[error("the VMM closed the control connection")]
    Closed,
}

/// The connection, never blocking after it was made.
pub(crate) struct Connection {
    socket: OwnedFd,
    received: Vec<u8>,
    unsent: Vec<u8>,
}

/// A stream to `port` of the host, which does not block once it is connected.
pub(crate) fn connect(port: u32) -> rustix::io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sys::connect_vsock(&socket, &VsockAddr::new(VMADDR_CID_HOST, port), CONNECT_LIMIT)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    Ok(socket)
}

impl Connection {
    /// Connects to the VMM. Blocks: there is nothing else to do before.
    pub(crate) fn open() -> Result<Self, ConnectionError> {
        let socket = connect(agent::CONTROL_PORT).map_err(ConnectionError::Connect)?;
        Ok(Self::new(socket))
    }

    /// A connection over an open socket that does not block.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, received: Vec::new(), unsent: Vec::new() }
    }

    /// Reads what is there and gives the whole requests in it.
    pub(crate) fn receive(&mut self) -> Result<Vec<Call>, ConnectionError> {
        let mut chunk = [0; 16 << 10];
        loop {
            match rustix::io::read(&self.socket, &mut chunk) {
                Ok(0) => return Err(ConnectionError::Closed),
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut calls = Vec::new();
        while let Some(call) = frame::take(&mut self.received)? {
            calls.push(call);
        }
        Ok(calls)
    }

    /// Sends a message, or keeps what the socket does not take for [`Connection::flush`].
    pub(crate) fn send(&mut self, message: &FromAgent) -> Result<(), ConnectionError> {
        self.unsent.extend(frame::encode(message)?);
        self.flush()
    }

    /// Sends what was kept, as far as the socket takes it.
    pub(crate) fn flush(&mut self) -> Result<(), ConnectionError> {
        while !self.unsent.is_empty() {
            match rustix::io::write(&self.socket, &self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
