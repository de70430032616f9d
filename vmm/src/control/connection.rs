//! The VMM's end of a control connection. No call blocks.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use agent::frame::{self, FrameError};
use nix::errno::Errno;
use nix::sys::socket::{self, ControlMessageOwned, MsgFlags};
use thiserror::Error;

use super::{Answer, Call};

/// Bytes read at once.
const CHUNK: usize = 16 << 10;

/// Most descriptors that a client may pass with one request, and that may be queued for an incomplete request.
const MAX_FDS: usize = 64;

/// Most descriptors that the kernel passes with one message (`SCM_MAX_FD`). With space for fewer, it would drop those behind, and the
/// ones before would have no owner: their control message may not be read then.
pub(crate) const SCM_MAX_FD: usize = 253;

/// Most bytes of answers that are buffered for a client that does not read.
const MAX_UNSENT: usize = 1 << 20;

/// Why a connection is unusable.
#[derive(Debug, Error)]
pub enum ConnectionError {
    /// The client closed it.
    #[error("the client closed the connection")]
    Closed,
    /// The client sent a frame that is not a request.
    #[error("bad request")]
    Frame(#[from] FrameError),
    /// The client passed more descriptors than any request has.
    #[error("too many descriptors")]
    TooManyDescriptors,
    /// The client does not read its answers.
    #[error("the client does not read its answers")]
    Stuck,
    /// A system call failed.
    #[error("connection failed")]
    Io(#[from] io::Error),
}

/// A connection to a client.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    /// Received descriptors in the order of their requests.
    fds: VecDeque<OwnedFd>,
    unsent: Vec<u8>,
}

impl Connection {
    /// A connection over a connected socket.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, received: Vec::new(), fds: VecDeque::new(), unsent: Vec::new() }
    }

    /// The next request; `None` if no whole one has been received.
    ///
    /// # Errors
    /// The client closed the connection or violated the protocol.
    pub fn next_call(&mut self) -> Result<Option<Call>, ConnectionError> {
        loop {
            if let Some(call) = frame::decode(&mut self.received)? {
                return Ok(Some(call));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// The descriptors of the request that [`Connection::next_call`] returned last, whose ownership passes to the caller; `None`
    /// if fewer than `count` were received.
    pub fn take_fds(&mut self, count: usize) -> Option<Vec<OwnedFd>> {
        (self.fds.len() >= count).then(|| self.fds.drain(..count).collect())
    }

    /// Sends an answer. Bytes that the socket does not take are buffered for [`Connection::flush`].
    ///
    /// # Errors
    /// The client closed the connection, or too many bytes are buffered.
    pub fn send(&mut self, answer: &Answer) -> Result<(), ConnectionError> {
        self.unsent.extend(frame::encode(answer)?);
        self.flush()?;
        if self.unsent.len() > MAX_UNSENT { Err(ConnectionError::Stuck) } else { Ok(()) }
    }

    /// Sends buffered bytes as far as the socket takes them.
    ///
    /// # Errors
    /// The client closed the connection, or a system call failed.
    pub fn flush(&mut self) -> Result<(), ConnectionError> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while !self.unsent.is_empty() {
            match socket::send(self.stream.as_raw_fd(), &self.unsent, flags) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(ConnectionError::Closed),
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(())
    }

    /// Whether bytes are buffered.
    #[must_use]
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Reads once; false if nothing can be read now.
    fn fill(&mut self) -> Result<bool, ConnectionError> {
        let start = self.received.len();
        self.received.resize(start + CHUNK, 0);
        let result = self.receive_to(start);
        self.received.truncate(start + result.as_ref().map_or(0, |count| count.unwrap_or(0)));
        Ok(result?.is_some())
    }

    /// Receives bytes to `received[start..]`, and descriptors. Returns the number of bytes; `None` if nothing can be read now.
    fn receive_to(&mut self, start: usize) -> Result<Option<usize>, ConnectionError> {
        let mut space = nix::cmsg_space!([RawFd; SCM_MAX_FD]);
        let mut buffer = [IoSliceMut::new(&mut self.received[start..])];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match socket::recvmsg::<()>(self.stream.as_raw_fd(), &mut buffer, Some(&mut space), flags) {
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => return Ok(Some(0)),
            Err(Errno::ECONNRESET) => return Err(ConnectionError::Closed),
            result => result.map_err(io::Error::from)?,
        };
        for control in message.cmsgs().map_err(io::Error::from)? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                // SAFETY: the kernel has just created these descriptors in this process, and nothing else owns them.
                self.fds.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if self.fds.len() > MAX_FDS {
            return Err(ConnectionError::TooManyDescriptors);
        }
        if message.bytes == 0 { Err(ConnectionError::Closed) } else { Ok(Some(message.bytes)) }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Duration;

    use super::super::{Client, Reply, Request};
    use super::*;

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Connection::new(ours), theirs)
    }

    fn share(name: &str) -> Request {
        Request::AddShare { name: name.into(), options: crate::control::ShareOptions::default() }
    }

    #[test]
    fn descriptors_are_returned_with_their_requests() {
        let (mut connection, client) = pair();
        let mut client = Client::from_stream(client);
        let (reader, writer) = std::io::pipe().unwrap();
        client.send(&Request::Timeline, &[]).unwrap();
        client.send(&share("c/a"), &[writer.as_fd()]).unwrap();
        client.send(&share("c/b"), &[reader.as_fd()]).unwrap();
        drop((reader, writer));
        let mut fds = Vec::new();
        for _ in 0..3 {
            let call = connection.next_call().unwrap().unwrap();
            if matches!(call.request, Request::AddShare { .. }) {
                fds.extend(connection.take_fds(1).unwrap());
            }
        }
        assert!(connection.take_fds(1).is_none());
        std::fs::File::from(fds.remove(0)).write_all(b"same pipe").unwrap();
        let mut text = String::new();
        std::fs::File::from(fds.remove(0)).read_to_string(&mut text).unwrap();
        assert_eq!(text, "same pipe");
    }

    #[test]
    fn too_many_descriptors_are_an_error_and_are_closed() {
        for count in [MAX_FDS + 1, SCM_MAX_FD] {
            let (mut connection, client) = pair();
            let mut client = Client::from_stream(client);
            let (reader, writer) = UnixStream::pair().unwrap();
            client.send(&share("c/a"), &vec![writer.as_fd(); count]).unwrap();
            drop(writer);
            assert!(matches!(connection.next_call(), Err(ConnectionError::TooManyDescriptors)));
            drop(connection);
            reader.set_nonblocking(true).unwrap();
            assert_eq!((&reader).read(&mut [0]).unwrap(), 0, "a descriptor is still open");
        }
    }

    #[test]
    fn an_invalid_frame_is_an_error_before_memory_is_allocated() {
        let (mut connection, mut client) = pair();
        client.write_all(&[0xff; 100]).unwrap();
        assert!(matches!(connection.next_call(), Err(ConnectionError::Frame(FrameError::TooLarge(_)))));
        let (mut connection, mut client) = pair();
        client.write_all(&[2, 0, 0, 0, b'{', b'}']).unwrap();
        assert!(matches!(connection.next_call(), Err(ConnectionError::Frame(FrameError::Json(_)))));
    }

    #[test]
    fn an_incomplete_request_does_not_block() {
        let (mut connection, mut client) = pair();
        let bytes = frame::encode(&Call { id: 1, request: Request::Timeline }).unwrap();
        client.write_all(&bytes[..7]).unwrap();
        assert!(connection.next_call().unwrap().is_none());
        client.write_all(&bytes[7..]).unwrap();
        assert_eq!(connection.next_call().unwrap().unwrap().id, 1);
        drop(client);
        assert!(matches!(connection.next_call(), Err(ConnectionError::Closed)));
    }

    #[test]
    fn a_client_that_does_not_read_is_an_error() {
        let (mut connection, client) = pair();
        let answer = Answer { id: 1, result: Ok(Reply::Done) };
        let result = (0..100_000).try_for_each(|_| connection.send(&answer));
        assert!(matches!(result, Err(ConnectionError::Stuck)));
        drop(client);
    }

    #[test]
    fn buffered_answers_are_sent_when_the_client_reads() {
        let (mut connection, mut client) = pair();
        let answer = Answer { id: 1, result: Ok(Reply::Done) };
        let mut count = 0;
        while !connection.has_unsent() {
            connection.send(&answer).unwrap();
            count += 1;
        }
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        for _ in 0..count {
            connection.flush().unwrap();
            let _: Answer = frame::read(&mut client).unwrap().unwrap();
        }
        assert!(!connection.has_unsent());
    }
}
