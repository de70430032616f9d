//! The runtime's end of a control connection.
//!
//! The VMM may be compromised. The size of a frame is bounded, and a wait ends at its deadline. An answer without a pending
//! request is an error. The kernel drops descriptors that the VMM sends, because the client never receives any.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent::Failure;
use agent::frame::{self, FrameError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::time::TimeVal;
use thiserror::Error;

use super::{Answer, Call, Reply, Request};

/// Time for connecting, and for sending a whole request. A VMM's event loop never blocks, so each takes microseconds unless the
/// VMM is stopped.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes read at once.
const CHUNK: usize = 16 << 10;

/// Why a request has no reply.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The control socket refused the connection.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A system call on the connection failed.
    #[error("connection to the sandbox failed")]
    Io(#[from] io::Error),
    /// A received frame is invalid, or the request does not fit into a frame.
    #[error("bad message on the connection to the sandbox")]
    Frame(#[from] FrameError),
    /// The VMM closed the connection or ended.
    #[error("the sandbox closed the connection")]
    Closed,
    /// The answer did not arrive in time.
    #[error("the sandbox did not answer within {0:?}")]
    Timeout(Duration),
    /// An answer without a pending request.
    #[error("the sandbox answered request {0}, which was not asked")]
    UnknownAnswer(u64),
    /// The request failed in the VMM or in the guest.
    #[error(transparent)]
    Failure(#[from] Failure),
}

/// A control connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    next_id: u64,
    /// Ids of the requests that were not answered.
    pending: BTreeSet<u64>,
    /// Answers that arrived while [`Client::call`] waited for another one; at most one for each pending request.
    queued: VecDeque<Answer>,
    /// Received bytes of an incomplete frame.
    received: Vec<u8>,
}

impl Client {
    /// Connects to a sandbox's `control.sock`.
    ///
    /// # Errors
    /// [`ClientError::Connect`] if no process listens on the socket, or if the VMM is stopped and its backlog is full.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream =
            connect_stream(path).map_err(|error| ClientError::Connect { path: path.into(), source: error.into() })?;
        Ok(Self::from_stream(stream))
    }

    /// A client over a connected socket, for example one end of the socket pair whose other end the VMM inherits.
    #[must_use]
    pub fn from_stream(stream: UnixStream) -> Self {
        Self { stream, next_id: 1, pending: BTreeSet::new(), queued: VecDeque::new(), received: Vec::new() }
    }

    /// Sends a request with its descriptors and returns its id, without waiting for the answer.
    ///
    /// # Errors
    /// The request does not fit into a frame, the connection failed, or the VMM did not receive the request within ten seconds.
    pub fn send(&mut self, request: &Request, fds: &[BorrowedFd]) -> Result<u64, ClientError> {
        let id = self.next_id;
        let bytes = frame::encode(&Call { id, request: request.clone() })?;
        let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        self.send_bytes(&bytes, &fds)?;
        self.next_id += 1;
        self.pending.insert(id);
        Ok(id)
    }

    /// Returns the next answer to any request. With `None` there is no timeout.
    ///
    /// # Errors
    /// No answer arrived within `timeout`, or the connection failed or was closed.
    pub fn receive(&mut self, timeout: Option<Duration>) -> Result<Answer, ClientError> {
        match self.queued.pop_front() {
            Some(answer) => Ok(answer),
            None => self.next_answer(Deadline::after(timeout)),
        }
    }

    /// Sends a request and waits for its answer. Answers to other requests are queued for [`Client::receive`].
    ///
    /// # Errors
    /// As [`Client::send`] and [`Client::receive`], and [`ClientError::Failure`] if the request failed.
    pub fn call(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd],
        timeout: Option<Duration>,
    ) -> Result<Reply, ClientError> {
        let deadline = Deadline::after(timeout);
        let id = self.send(request, fds)?;
        loop {
            let answer = self.next_answer(deadline)?;
            if answer.id == id {
                return Ok(answer.result?);
            }
            self.queued.push_back(answer);
        }
    }

    fn send_bytes(&self, bytes: &[u8], fds: &[RawFd]) -> Result<(), ClientError> {
        let deadline = Deadline::after(Some(SEND_TIMEOUT));
        let mut sent = 0;
        while sent < bytes.len() {
            let rights = [ControlMessage::ScmRights(fds)];
            // The descriptors are passed once, with the frame's first byte.
            let control = if sent == 0 && !fds.is_empty() { &rights[..] } else { &[] };
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let rest = [IoSlice::new(&bytes[sent..])];
            match socket::sendmsg::<()>(self.stream.as_raw_fd(), &rest, control, flags, None) {
                Ok(count) => sent += count,
                Err(Errno::EAGAIN) => deadline.wait(self.as_fd(), PollFlags::POLLOUT)?,
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(ClientError::Closed),
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(())
    }

    /// Waits for a frame and checks that it answers a pending request.
    fn next_answer(&mut self, deadline: Deadline) -> Result<Answer, ClientError> {
        loop {
            if let Some(answer) = frame::decode::<Answer>(&mut self.received)? {
                if !self.pending.remove(&answer.id) {
                    return Err(ClientError::UnknownAnswer(answer.id));
                }
                return Ok(answer);
            }
            deadline.wait(self.as_fd(), PollFlags::POLLIN)?;
            self.fill()?;
        }
    }

    /// Reads once. It does not block.
    fn fill(&mut self) -> Result<(), ClientError> {
        let mut chunk = [0; CHUNK];
        match socket::recv(self.stream.as_raw_fd(), &mut chunk, MsgFlags::MSG_DONTWAIT) {
            Ok(0) | Err(Errno::ECONNRESET) => Err(ClientError::Closed),
            Ok(count) => {
                self.received.extend_from_slice(&chunk[..count]);
                Ok(())
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn connect_stream(path: &Path) -> nix::Result<UnixStream> {
    let fd: OwnedFd = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // The send timeout also limits how long `connect` waits for a full backlog.
    let timeout = TimeVal::new(SEND_TIMEOUT.as_secs().try_into().unwrap_or(i64::MAX), 0);
    socket::setsockopt(&fd, sockopt::SendTimeout, &timeout)?;
    socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd.into())
}

/// The end of a wait and its original duration; `None` for a wait without a timeout.
#[derive(Clone, Copy)]
struct Deadline(Option<(Instant, Duration)>);

impl Deadline {
    fn after(timeout: Option<Duration>) -> Self {
        Self(timeout.and_then(|timeout| Some((Instant::now().checked_add(timeout)?, timeout))))
    }

    /// Waits until `fd` is ready for `events`, or closed.
    fn wait(self, fd: BorrowedFd, events: PollFlags) -> Result<(), ClientError> {
        loop {
            let left = match self.0 {
                None => PollTimeout::NONE,
                Some((end, _)) => {
                    let left = end.saturating_duration_since(Instant::now());
                    // Rounded up: a rest of less than a millisecond must not become a timeout of 0, which does not wait.
                    PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
                }
            };
            match (poll(&mut [PollFd::new(fd, events)], left), self.0) {
                (Ok(0), Some((end, timeout))) if Instant::now() >= end => return Err(ClientError::Timeout(timeout)),
                (Ok(0) | Err(Errno::EINTR), _) => {}
                (Ok(_), _) => return Ok(()),
                (Err(error), _) => return Err(io::Error::from(error).into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::thread;

    use agent::{FailureKind, ProcessId};

    use super::*;

    const SOON: Option<Duration> = Some(Duration::from_millis(50));
    const LONG: Option<Duration> = Some(Duration::from_secs(20));

    fn pair() -> (Client, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Client::from_stream(ours), theirs)
    }

    fn answer(to: &mut UnixStream, id: u64, result: Result<Reply, Failure>) {
        frame::write(to, &Answer { id, result }).unwrap();
    }

    fn wait_request() -> Request {
        Request::Wait { process: ProcessId { container: "c".into(), exec: None } }
    }

    #[test]
    fn a_call_returns_its_answer_and_queues_the_others() {
        let (mut client, mut vmm) = pair();
        let first = client.send(&wait_request(), &[]).unwrap();
        answer(&mut vmm, first, Ok(Reply::Done));
        answer(&mut vmm, first + 1, Ok(Reply::Process { pid: 7 }));
        assert_eq!(client.call(&Request::Timeline, &[], LONG).unwrap(), Reply::Process { pid: 7 });
        assert_eq!(client.receive(LONG).unwrap().id, first);
        assert!(matches!(client.receive(SOON), Err(ClientError::Timeout(_))));
    }

    #[test]
    fn a_failure_is_returned_as_an_error() {
        let (mut client, mut vmm) = pair();
        let failure = Failure { kind: FailureKind::NotFound, step: "find c".into(), cause: "no such".into() };
        answer(&mut vmm, 1, Err(failure.clone()));
        match client.call(&Request::Timeline, &[], LONG) {
            Err(ClientError::Failure(actual)) => assert_eq!(actual, failure),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_without_a_request_and_an_invalid_frame_are_errors() {
        let (mut client, mut vmm) = pair();
        answer(&mut vmm, 9, Ok(Reply::Done));
        assert!(matches!(client.receive(LONG), Err(ClientError::UnknownAnswer(9))));
        vmm.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(matches!(client.receive(LONG), Err(ClientError::Frame(FrameError::TooLarge(_)))));
    }

    #[test]
    fn the_end_of_the_vmm_is_an_error_at_once() {
        let (mut client, vmm) = pair();
        drop(vmm);
        assert!(matches!(client.receive(LONG), Err(ClientError::Closed)));
        assert!(matches!(client.call(&Request::Timeline, &[], LONG), Err(ClientError::Closed)));
    }

    #[test]
    fn slowly_arriving_bytes_do_not_extend_the_deadline() {
        let (mut client, mut vmm) = pair();
        vmm.write_all(&1000_u32.to_le_bytes()).unwrap();
        let trickle = thread::spawn(move || {
            for _ in 0..100 {
                thread::sleep(Duration::from_millis(10));
                if vmm.write_all(b" ").is_err() {
                    return;
                }
            }
        });
        let begin = Instant::now();
        assert!(matches!(client.receive(SOON), Err(ClientError::Timeout(_))));
        assert!(begin.elapsed() < Duration::from_millis(900));
        drop(client);
        trickle.join().unwrap();
    }

    #[test]
    fn a_request_larger_than_the_socket_buffer_is_sent_whole() {
        let (mut client, mut vmm) = pair();
        let name = "x".repeat(1 << 20);
        let request = Request::RemoveShare { name: name.clone() };
        let reader = thread::spawn(move || {
            let call: Call = frame::read(&mut vmm).unwrap().unwrap();
            let Request::RemoveShare { name } = call.request else { panic!("unexpected request") };
            let mut rest = Vec::new();
            vmm.read_to_end(&mut rest).unwrap();
            (name, rest.len())
        });
        client.send(&request, &[]).unwrap();
        drop(client);
        assert_eq!(reader.join().unwrap(), (name, 0));
    }

    #[test]
    fn a_missing_control_socket_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = Client::connect(&dir.path().join("control.sock")).unwrap_err();
        assert!(matches!(error, ClientError::Connect { ref source, .. } if source.kind() == io::ErrorKind::NotFound));
    }
}
