//! The controller's connection to the agent in the guest: requests, their deadlines, and the agent's messages.
//!
//! The guest may be hostile. The size of a frame is bounded, a reply must belong to a call, control characters in text are
//! replaced and long text is cut. A violation of the protocol ends the sandbox.

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;

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
            while let Some(message) = frame::decode(&mut self.received)? {
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
