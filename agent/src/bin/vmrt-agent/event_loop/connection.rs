//! The control connection to the VMM.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent::frame::{self, FrameError};
use agent::{Call, FromAgent};
use rustix::io::Errno;
use thiserror::Error;

use crate::sys::vsock;

/// A failure of the connection. The guest cannot continue without it.
#[derive(Debug, Error)]
pub(crate) enum ConnectionError {
    /// The VMM does not accept the connection.
    #[error("connect to the VMM")]
    Connect(#[source] Errno),
    /// The VMM sent an invalid request, or a frame that is too large.
    #[error("receive a request")]
    Frame(#[from] FrameError),
    /// Reading or writing failed.
    #[error("use the control connection")]
    Io(#[from] Errno),
    /// The VMM closed it.
    #[error("the VMM closed the control connection")]
    Closed,
}

/// The connection. It blocks only while it is established.
pub(crate) struct Connection {
    socket: OwnedFd,
    received: Vec<u8>,
    unsent: Vec<u8>,
}

impl Connection {
    /// Connects to the VMM. Blocks until the connection is established.
    pub(crate) fn open() -> Result<Self, ConnectionError> {
        let socket = vsock::connect_to_host(agent::CONTROL_PORT, &[]).map_err(ConnectionError::Connect)?;
        Ok(Self::new(socket))
    }

    /// A connection over a connected, non-blocking socket.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, received: Vec::new(), unsent: Vec::new() }
    }

    /// Reads all received bytes, and returns the complete requests in them.
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
        while let Some(call) = frame::decode(&mut self.received)? {
            calls.push(call);
        }
        Ok(calls)
    }

    /// Sends a message. Bytes that the socket does not accept yet are buffered for [`Connection::flush`].
    pub(crate) fn send(&mut self, message: &FromAgent) -> Result<(), ConnectionError> {
        self.unsent.extend(frame::encode(message)?);
        self.flush()
    }

    /// Sends buffered bytes, as far as the socket accepts them.
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
