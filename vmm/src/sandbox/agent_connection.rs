//! The controller's connection to the agent in the guest: requests, their deadlines, and the agent's messages.
//!
//! The guest may be hostile. The size of a frame is bounded, a reply must belong to a call, control characters in text are
//! replaced and long text is cut. A violation of the protocol ends the sandbox.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use agent::frame::{self, FrameError};
use agent::{Call, Event, Failure, FailureKind, FromAgent, Hello, Request, Response};
use nix::errno::Errno;
use nix::sys::socket::{self, MsgFlags};
use thiserror::Error;

/// Time from the guest's first instruction to the agent's `Hello`. A boot takes about 50 ms on hardware and a second under
/// nested emulation. The timeout leaves room for twenty guests that start at once on such a host.
const BOOT_TIMEOUT: Duration = Duration::from_secs(30);

/// Time the agent has to answer a request. The slowest request sets up the mounts of a container; none waits for a program
/// of the container.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Most bytes of requests that are buffered for the guest.
const MAX_UNSENT: usize = 16 << 20;

/// Most characters of a text from the guest; the rest is cut.
const MAX_TEXT: usize = 1000;

/// Bytes read at once.
const CHUNK: usize = 16 << 10;

/// Why the connection to the agent is unusable.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The agent closed its connection, or it ended.
    #[error("the agent closed its connection")]
    Closed,
    /// The agent did not send `Hello` in time.
    #[error("the agent did not answer within {}s (kernel booting)", BOOT_TIMEOUT.as_secs())]
    BootTimeout,
    /// The agent is of another build.
    #[error("the agent speaks protocol version {0}, this VMM speaks {expected}", expected = agent::VERSION)]
    Version(u32),
    /// The agent violated the protocol.
    #[error("the agent broke the protocol: {0}")]
    Protocol(&'static str),
    /// The agent sent a frame that is not a message.
    #[error("the agent sent a bad message")]
    Frame(#[from] FrameError),
    /// A system call failed.
    #[error("the connection to the agent failed")]
    Io(#[from] io::Error),
}

/// A message of the agent. `T` is the context that the caller stored with its request.
#[derive(Debug)]
pub(super) enum AgentMessage<T> {
    Hello(Hello),
    Reply { context: T, result: Result<Response, Failure> },
    Event(Event),
}

/// A request that the agent has not answered.
#[derive(Debug)]
struct PendingCall<T> {
    /// What the request does, for the failure of a timeout.
    step: String,
    /// `None` for a call without a timeout.
    deadline: Option<Instant>,
    context: T,
}

/// The connection to the agent. It buffers requests until the agent has sent `Hello`.
#[derive(Debug)]
pub(super) struct AgentConnection<T> {
    stream: UnixStream,
    received: Vec<u8>,
    unsent: Vec<u8>,
    is_ready: bool,
    boot_deadline: Instant,
    calls: BTreeMap<u64, PendingCall<T>>,
    next_id: u64,
}

impl<T> AgentConnection<T> {
    /// A connection over `stream` to an agent that has not booted yet.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            received: Vec::new(),
            unsent: Vec::new(),
            is_ready: false,
            boot_deadline: Instant::now() + BOOT_TIMEOUT,
            calls: BTreeMap::new(),
            next_id: 1,
        }
    }

    /// Queues a request. `step` describes it in the failure of a timeout.
    ///
    /// # Errors
    /// Too many bytes are queued for the guest, or the request is too large for a frame. The error returns `context`.
    pub(super) fn call(&mut self, request: Request, step: String, context: T) -> Result<(), (T, Failure)> {
        self.enqueue(request, step, context, Some(Instant::now() + CALL_TIMEOUT))
    }

    /// Like [`AgentConnection::call`], without a timeout.
    ///
    /// # Errors
    /// As [`AgentConnection::call`].
    pub(super) fn call_without_timeout(
        &mut self,
        request: Request,
        step: String,
        context: T,
    ) -> Result<(), (T, Failure)> {
        self.enqueue(request, step, context, None)
    }

    fn enqueue(
        &mut self,
        request: Request,
        step: String,
        context: T,
        deadline: Option<Instant>,
    ) -> Result<(), (T, Failure)> {
        let id = self.next_id;
        let bytes = match frame::encode(&Call { id, request }) {
            Ok(bytes) if self.unsent.len() + bytes.len() <= MAX_UNSENT => bytes,
            Ok(_) => return Err((context, system_failure(step, "too many requests wait for the guest"))),
            Err(error) => return Err((context, system_failure(step, &error.to_string()))),
        };
        self.next_id += 1;
        self.unsent.extend(bytes);
        self.calls.insert(id, PendingCall { step, deadline, context });
        Ok(())
    }

    /// Sends queued requests as far as the socket takes them.
    ///
    /// # Errors
    /// The agent closed the connection, or a system call failed.
    pub(super) fn flush(&mut self) -> Result<(), AgentError> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let mut sent = 0;
        while self.is_ready && sent < self.unsent.len() {
            match socket::send(self.stream.as_raw_fd(), &self.unsent[sent..], flags) {
                Ok(count) => sent += count,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(AgentError::Closed),
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        self.unsent.drain(..sent);
        Ok(())
    }

    /// Whether [`AgentConnection::flush`] has to be called when the socket is writable.
    pub(super) fn has_unsent(&self) -> bool {
        self.is_ready && !self.unsent.is_empty()
    }

    /// The next message; `None` if no whole one has been received.
    ///
    /// # Errors
    /// The agent closed the connection or violated the protocol, or a system call failed.
    pub(super) fn next_message(&mut self) -> Result<Option<AgentMessage<T>>, AgentError> {
        loop {
            while let Some(message) = frame::take(&mut self.received)? {
                if let Some(message) = self.check(message)? {
                    return Ok(Some(message));
                }
            }
            if !self.receive()? {
                return Ok(None);
            }
        }
    }

    /// Removes the calls whose deadline has passed, each with its failure.
    ///
    /// # Errors
    /// [`AgentError::BootTimeout`] if the agent has not sent `Hello` in time.
    pub(super) fn take_expired(&mut self, now: Instant) -> Result<Vec<(T, Failure)>, AgentError> {
        if !self.is_ready {
            return if now >= self.boot_deadline { Err(AgentError::BootTimeout) } else { Ok(Vec::new()) };
        }
        let is_expired = |call: &PendingCall<T>| call.deadline.is_some_and(|deadline| deadline <= now);
        let expired: Vec<u64> = self.calls.iter().filter(|(_, call)| is_expired(call)).map(|(id, _)| *id).collect();
        let expired = expired.into_iter().filter_map(|id| self.calls.remove(&id));
        Ok(expired.map(|call| (call.context, timeout(call.step))).collect())
    }

    /// When [`AgentConnection::take_expired`] has to be called next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.is_ready {
            self.calls.values().filter_map(|call| call.deadline).min()
        } else {
            Some(self.boot_deadline)
        }
    }

    /// Drops queued requests, and removes and returns the contexts of all unanswered calls.
    pub(super) fn take_pending(&mut self) -> Vec<T> {
        self.unsent.clear();
        std::mem::take(&mut self.calls).into_values().map(|call| call.context).collect()
    }

    /// Checks a message against the protocol. `None` for a reply that came after its deadline.
    fn check(&mut self, message: FromAgent) -> Result<Option<AgentMessage<T>>, AgentError> {
        match message {
            FromAgent::Hello(hello) => self.on_hello(hello).map(Some),
            _ if !self.is_ready => Err(AgentError::Protocol("it did not greet first")),
            FromAgent::Event(event) => Ok(Some(AgentMessage::Event(event))),
            FromAgent::Reply { id, .. } if id >= self.next_id => {
                Err(AgentError::Protocol("it answered what was not asked"))
            }
            FromAgent::Reply { id, result } => Ok(self.calls.remove(&id).map(|call| AgentMessage::Reply {
                context: call.context,
                result: result.map_err(|failure| sanitize(&failure)),
            })),
        }
    }

    /// The timeouts of queued calls begin now: until now the guest was booting.
    fn on_hello(&mut self, mut hello: Hello) -> Result<AgentMessage<T>, AgentError> {
        if self.is_ready {
            return Err(AgentError::Protocol("it greeted twice"));
        }
        if hello.version != agent::VERSION {
            return Err(AgentError::Version(hello.version));
        }
        self.is_ready = true;
        let now = Instant::now();
        for deadline in self.calls.values_mut().filter_map(|call| call.deadline.as_mut()) {
            *deadline = now + CALL_TIMEOUT;
        }
        hello.kernel = printable(&hello.kernel);
        Ok(AgentMessage::Hello(hello))
    }

    /// Reads once; false if nothing can be read now.
    fn receive(&mut self) -> Result<bool, AgentError> {
        let mut chunk = [0; CHUNK];
        match socket::recv(self.stream.as_raw_fd(), &mut chunk, MsgFlags::MSG_DONTWAIT) {
            Ok(0) | Err(Errno::ECONNRESET) => Err(AgentError::Closed),
            Ok(count) => {
                self.received.extend_from_slice(&chunk[..count]);
                Ok(true)
            }
            Err(Errno::EAGAIN) => Ok(false),
            Err(Errno::EINTR) => Ok(true),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }
}

impl<T> AsFd for AgentConnection<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn system_failure(step: String, cause: &str) -> Failure {
    Failure { kind: FailureKind::System, step, cause: cause.to_owned() }
}

fn timeout(step: String) -> Failure {
    let cause = format!("the guest agent did not answer within {}s", CALL_TIMEOUT.as_secs());
    Failure { kind: FailureKind::Timeout, step, cause }
}

/// Makes text from the guest safe for terminals and logs.
fn sanitize(failure: &Failure) -> Failure {
    Failure { kind: failure.kind, step: printable(&failure.step), cause: printable(&failure.cause) }
}

fn printable(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|char| if char.is_control() { ' ' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    const HELLO: FromAgent =
        FromAgent::Hello(Hello { version: agent::VERSION, kernel: String::new(), started_ns: 1, ready_ns: 2 });

    fn pair() -> (AgentConnection<u32>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (AgentConnection::new(ours), theirs)
    }

    fn send(agent: &mut UnixStream, message: &FromAgent) {
        frame::write(agent, message).unwrap();
    }

    fn start(connection: &mut AgentConnection<u32>, context: u32) {
        let request = Request::Start { container: "c".into() };
        connection.call(request, "start container c".into(), context).unwrap();
    }

    #[test]
    fn requests_are_not_sent_before_the_hello() {
        let (mut connection, mut agent) = pair();
        start(&mut connection, 7);
        connection.flush().unwrap();
        agent.set_nonblocking(true).unwrap();
        assert!(agent.read(&mut [0; 1]).is_err());
        agent.set_nonblocking(false).unwrap();
        send(&mut agent, &HELLO);
        assert!(matches!(connection.next_message().unwrap(), Some(AgentMessage::Hello(_))));
        connection.flush().unwrap();
        let call: Call = frame::read(&mut agent).unwrap().unwrap();
        send(&mut agent, &FromAgent::Reply { id: call.id, result: Ok(Response::Done) });
        assert!(matches!(
            connection.next_message().unwrap(),
            Some(AgentMessage::Reply { context: 7, result: Ok(Response::Done) })
        ));
        assert!(connection.next_message().unwrap().is_none());
    }

    #[test]
    fn a_boot_timeout_and_a_call_timeout_are_different_errors() {
        let (mut connection, mut agent) = pair();
        start(&mut connection, 1);
        assert!(connection.take_expired(Instant::now()).unwrap().is_empty());
        let error = connection.take_expired(Instant::now() + BOOT_TIMEOUT).unwrap_err();
        assert_eq!(error.to_string(), "the agent did not answer within 30s (kernel booting)");
        send(&mut agent, &HELLO);
        connection.next_message().unwrap();
        let expired = connection.take_expired(Instant::now() + CALL_TIMEOUT).unwrap();
        assert_eq!(expired[0].0, 1);
        assert_eq!(expired[0].1.to_string(), "start container c: the guest agent did not answer within 30s");
        assert!(connection.deadline().is_none());
        send(&mut agent, &FromAgent::Reply { id: 1, result: Ok(Response::Done) });
        assert!(connection.next_message().unwrap().is_none(), "a reply after its deadline is dropped");
    }

    #[test]
    fn protocol_violations_are_errors() {
        let reply = FromAgent::Reply { id: 5, result: Ok(Response::Done) };
        let old = FromAgent::Hello(Hello { version: 0, kernel: String::new(), started_ns: 0, ready_ns: 0 });
        for (messages, error) in [
            (vec![reply.clone()], "the agent broke the protocol: it did not greet first"),
            (vec![HELLO, HELLO], "the agent broke the protocol: it greeted twice"),
            (vec![HELLO, reply], "the agent broke the protocol: it answered what was not asked"),
            (vec![old], "the agent speaks protocol version 0, this VMM speaks 1"),
        ] {
            let (mut connection, mut agent) = pair();
            messages.iter().for_each(|message| send(&mut agent, message));
            let actual = loop {
                if let Err(error) = connection.next_message() {
                    break error;
                }
            };
            assert_eq!(actual.to_string(), error);
        }
    }

    #[test]
    fn invalid_and_oversized_frames_are_errors() {
        for bytes in [&[0xff_u8; 64][..], &[3, 0, 0, 0, 1, 2, 3]] {
            let (mut connection, mut agent) = pair();
            agent.write_all(bytes).unwrap();
            assert!(matches!(connection.next_message(), Err(AgentError::Frame(_))));
        }
        let (mut connection, agent) = pair();
        drop(agent);
        assert!(matches!(connection.next_message(), Err(AgentError::Closed)));
    }

    #[test]
    fn text_from_the_guest_is_sanitized() {
        let (mut connection, mut agent) = pair();
        start(&mut connection, 1);
        send(&mut agent, &HELLO);
        let failure = Failure { kind: FailureKind::System, step: "\x1b[2Jfake\n".into(), cause: "x".repeat(100_000) };
        send(&mut agent, &FromAgent::Reply { id: 1, result: Err(failure) });
        connection.next_message().unwrap();
        let Some(AgentMessage::Reply { result: Err(failure), .. }) = connection.next_message().unwrap() else {
            panic!("no failure")
        };
        assert_eq!((failure.step.as_str(), failure.cause.len()), (" [2Jfake ", MAX_TEXT));
    }

    #[test]
    fn queued_requests_are_bounded() {
        let (mut connection, _agent) = pair();
        let mut count = 0;
        let refused = loop {
            let request = Request::Delete { container: "x".repeat(1 << 20) };
            match connection.call(request, "delete".into(), count) {
                Ok(()) => count += 1,
                Err((_, failure)) => break failure,
            }
        };
        assert_eq!((count, refused.cause.as_str()), (15, "too many requests wait for the guest"));
        assert_eq!(connection.take_pending().len(), 15);
    }
}
