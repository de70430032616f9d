//! The agent in the guest, as the sandbox sees it: requests, their deadlines, and what may come back.
//!
//! Whatever comes may be hostile: a frame is bounded, a reply must belong to a call, text is made printable and short,
//! and any breach of the protocol is the end of the guest.

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

/// How long a guest may take from its first instruction to the agent's greeting. It takes about 50 ms on hardware and
/// a second under nested emulation; this leaves room for twenty that start at once on such a host.
pub(super) const BOOT_DEADLINE: Duration = Duration::from_secs(30);

/// How long the agent may take to answer. The slowest request sets up the mounts of a container; none waits for a
/// program of the container.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// Bytes of requests that may wait for the guest.
const MAX_UNSENT: usize = 16 << 20;

/// Characters of a message from the guest that are passed on.
const MAX_TEXT: usize = 1000;

/// Bytes read at once.
const CHUNK: usize = 16 << 10;

/// Why the agent cannot be talked to any more.
#[derive(Debug, Error)]
pub enum GuestError {
    /// It closed its connection, or it ended.
    #[error("the agent closed its connection")]
    Closed,
    /// It never said anything.
    #[error("the agent did not answer within {}s (kernel booting)", BOOT_DEADLINE.as_secs())]
    Silent,
    /// It is of another build.
    #[error("the agent speaks protocol version {0}, this VMM speaks {expected}", expected = agent::VERSION)]
    Version(u32),
    /// It broke the protocol.
    #[error("the agent broke the protocol: {0}")]
    Protocol(&'static str),
    /// What it sent is no message.
    #[error("the agent sent a bad message")]
    Frame(#[from] FrameError),
    /// A system call failed.
    #[error("the connection to the agent failed")]
    Io(#[from] io::Error),
}

/// What the agent said, where `T` is what its caller wanted to remember.
#[derive(Debug)]
pub(super) enum Heard<T> {
    Hello(Hello),
    Reply { context: T, result: Result<Response, Failure> },
    Event(Event),
}

#[derive(Debug)]
struct Waiting<T> {
    step: String,
    deadline: Option<Instant>,
    context: T,
}

/// The connection to the agent. Requests wait in it until the agent has greeted.
#[derive(Debug)]
pub(super) struct Guest<T> {
    stream: UnixStream,
    received: Vec<u8>,
    unsent: Vec<u8>,
    greeted: bool,
    boot_deadline: Instant,
    calls: BTreeMap<u64, Waiting<T>>,
    next_id: u64,
}

impl<T> Guest<T> {
    /// Talks over `stream` to an agent that is about to boot.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            received: Vec::new(),
            unsent: Vec::new(),
            greeted: false,
            boot_deadline: Instant::now() + BOOT_DEADLINE,
            calls: BTreeMap::new(),
            next_id: 1,
        }
    }

    /// Asks the agent for something. `step` says what, for the case that it does not answer.
    ///
    /// # Errors
    /// Too much waits for the guest already, or the connection failed; gives `context` back.
    pub(super) fn call(&mut self, request: Request, step: String, context: T) -> Result<(), (T, Failure)> {
        self.enqueue(request, step, context, Some(Instant::now() + CALL_DEADLINE))
    }

    /// As [`Guest::call`], where the answer may take for ever.
    ///
    /// # Errors
    /// As there.
    pub(super) fn call_patiently(&mut self, request: Request, step: String, context: T) -> Result<(), (T, Failure)> {
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
            Ok(_) => return Err((context, failure(step, "too many requests wait for the guest"))),
            Err(error) => return Err((context, failure(step, &error.to_string()))),
        };
        self.next_id += 1;
        self.unsent.extend(bytes);
        self.calls.insert(id, Waiting { step, deadline, context });
        Ok(())
    }

    /// Sends what waits, as far as the socket takes it.
    pub(super) fn flush(&mut self) -> Result<(), GuestError> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let mut sent = 0;
        while self.greeted && sent < self.unsent.len() {
            match socket::send(self.stream.as_raw_fd(), &self.unsent[sent..], flags) {
                Ok(count) => sent += count,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(GuestError::Closed),
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        self.unsent.drain(..sent);
        Ok(())
    }

    /// Whether [`Guest::flush`] waits for the socket.
    pub(super) fn has_unsent(&self) -> bool {
        self.greeted && !self.unsent.is_empty()
    }

    /// The next thing the agent said; `None` if it says nothing now.
    pub(super) fn hear(&mut self) -> Result<Option<Heard<T>>, GuestError> {
        loop {
            while let Some(message) = frame::take(&mut self.received)? {
                if let Some(heard) = self.understand(message)? {
                    return Ok(Some(heard));
                }
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// The calls whose deadline has passed, each with the failure to tell.
    ///
    /// # Errors
    /// The agent has not even greeted in time.
    pub(super) fn expire(&mut self, now: Instant) -> Result<Vec<(T, Failure)>, GuestError> {
        if !self.greeted {
            return if now >= self.boot_deadline { Err(GuestError::Silent) } else { Ok(Vec::new()) };
        }
        let is_late = |call: &Waiting<T>| call.deadline.is_some_and(|deadline| deadline <= now);
        let late: Vec<u64> = self.calls.iter().filter(|(_, call)| is_late(call)).map(|(id, _)| *id).collect();
        let late = late.into_iter().filter_map(|id| self.calls.remove(&id));
        Ok(late.map(|call| (call.context, timeout(call.step))).collect())
    }

    /// When [`Guest::expire`] has to be called next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.greeted { self.calls.values().filter_map(|call| call.deadline).min() } else { Some(self.boot_deadline) }
    }

    /// Gives up on everything: the contexts of all calls that were not answered.
    pub(super) fn abandon(&mut self) -> Vec<T> {
        self.unsent.clear();
        std::mem::take(&mut self.calls).into_values().map(|call| call.context).collect()
    }

    fn understand(&mut self, message: FromAgent) -> Result<Option<Heard<T>>, GuestError> {
        match message {
            FromAgent::Hello(hello) => self.greet(hello).map(Some),
            _ if !self.greeted => Err(GuestError::Protocol("it did not greet first")),
            FromAgent::Event(event) => Ok(Some(Heard::Event(event))),
            FromAgent::Reply { id, .. } if id >= self.next_id => {
                Err(GuestError::Protocol("it answered what was not asked"))
            }
            // A reply that is not waited for any more came after its deadline.
            FromAgent::Reply { id, result } => Ok(self
                .calls
                .remove(&id)
                .map(|call| Heard::Reply { context: call.context, result: result.map_err(|failure| tidy(&failure)) })),
        }
    }

    fn greet(&mut self, mut hello: Hello) -> Result<Heard<T>, GuestError> {
        if self.greeted {
            return Err(GuestError::Protocol("it greeted twice"));
        }
        if hello.version != agent::VERSION {
            return Err(GuestError::Version(hello.version));
        }
        self.greeted = true;
        let now = Instant::now();
        for deadline in self.calls.values_mut().filter_map(|call| call.deadline.as_mut()) {
            *deadline = now + CALL_DEADLINE;
        }
        hello.kernel = printable(&hello.kernel);
        Ok(Heard::Hello(hello))
    }

    fn fill(&mut self) -> Result<bool, GuestError> {
        let mut chunk = [0; CHUNK];
        match socket::recv(self.stream.as_raw_fd(), &mut chunk, MsgFlags::MSG_DONTWAIT) {
            Ok(0) | Err(Errno::ECONNRESET) => Err(GuestError::Closed),
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

impl<T> AsFd for Guest<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn failure(step: String, cause: &str) -> Failure {
    Failure { kind: FailureKind::System, step, cause: cause.to_owned() }
}

fn timeout(step: String) -> Failure {
    let cause = format!("the guest agent did not answer within {}s", CALL_DEADLINE.as_secs());
    Failure { kind: FailureKind::Timeout, step, cause }
}

/// What the guest says ends up on terminals and in logs.
fn tidy(failure: &Failure) -> Failure {
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

    fn pair() -> (Guest<u32>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Guest::new(ours), theirs)
    }

    fn say(agent: &mut UnixStream, message: &FromAgent) {
        frame::write(agent, message).unwrap();
    }

    fn start(guest: &mut Guest<u32>, context: u32) {
        let request = Request::Start { container: "c".into() };
        guest.call(request, "start container c".into(), context).unwrap();
    }

    #[test]
    fn requests_wait_for_the_greeting() {
        let (mut guest, mut agent) = pair();
        start(&mut guest, 7);
        guest.flush().unwrap();
        agent.set_nonblocking(true).unwrap();
        assert!(agent.read(&mut [0; 1]).is_err());
        agent.set_nonblocking(false).unwrap();
        say(&mut agent, &HELLO);
        assert!(matches!(guest.hear().unwrap(), Some(Heard::Hello(_))));
        guest.flush().unwrap();
        let call: Call = frame::read(&mut agent).unwrap().unwrap();
        say(&mut agent, &FromAgent::Reply { id: call.id, result: Ok(Response::Done) });
        assert!(matches!(guest.hear().unwrap(), Some(Heard::Reply { context: 7, result: Ok(Response::Done) })));
        assert!(guest.hear().unwrap().is_none());
    }

    #[test]
    fn a_silent_agent_is_told_from_a_slow_one() {
        let (mut guest, mut agent) = pair();
        start(&mut guest, 1);
        assert!(guest.expire(Instant::now()).unwrap().is_empty());
        let error = guest.expire(Instant::now() + BOOT_DEADLINE).unwrap_err();
        assert_eq!(error.to_string(), "the agent did not answer within 30s (kernel booting)");
        say(&mut agent, &HELLO);
        guest.hear().unwrap();
        let late = guest.expire(Instant::now() + CALL_DEADLINE).unwrap();
        assert_eq!(late[0].0, 1);
        assert_eq!(late[0].1.to_string(), "start container c: the guest agent did not answer within 30s");
        assert!(guest.deadline().is_none());
        say(&mut agent, &FromAgent::Reply { id: 1, result: Ok(Response::Done) });
        assert!(guest.hear().unwrap().is_none(), "an answer that is too late is dropped");
    }

    #[test]
    fn breaches_of_the_protocol_end_it() {
        let reply = FromAgent::Reply { id: 5, result: Ok(Response::Done) };
        let old = FromAgent::Hello(Hello { version: 0, kernel: String::new(), started_ns: 0, ready_ns: 0 });
        for (messages, error) in [
            (vec![reply.clone()], "the agent broke the protocol: it did not greet first"),
            (vec![HELLO, HELLO], "the agent broke the protocol: it greeted twice"),
            (vec![HELLO, reply], "the agent broke the protocol: it answered what was not asked"),
            (vec![old], "the agent speaks protocol version 0, this VMM speaks 1"),
        ] {
            let (mut guest, mut agent) = pair();
            messages.iter().for_each(|message| say(&mut agent, message));
            let got = loop {
                if let Err(error) = guest.hear() {
                    break error;
                }
            };
            assert_eq!(got.to_string(), error);
        }
    }

    #[test]
    fn garbage_and_oversized_frames_end_it_without_costing_memory() {
        for bytes in [&[0xff_u8; 64][..], &[3, 0, 0, 0, 1, 2, 3]] {
            let (mut guest, mut agent) = pair();
            agent.write_all(bytes).unwrap();
            assert!(matches!(guest.hear(), Err(GuestError::Frame(_))));
        }
        let (mut guest, agent) = pair();
        drop(agent);
        assert!(matches!(guest.hear(), Err(GuestError::Closed)));
    }

    #[test]
    fn text_from_the_guest_is_made_harmless() {
        let (mut guest, mut agent) = pair();
        start(&mut guest, 1);
        say(&mut agent, &HELLO);
        let failure = Failure { kind: FailureKind::System, step: "\x1b[2Jfake\n".into(), cause: "x".repeat(100_000) };
        say(&mut agent, &FromAgent::Reply { id: 1, result: Err(failure) });
        guest.hear().unwrap();
        let Some(Heard::Reply { result: Err(failure), .. }) = guest.hear().unwrap() else { panic!("no failure") };
        assert_eq!((failure.step.as_str(), failure.cause.len()), (" [2Jfake ", MAX_TEXT));
    }

    #[test]
    fn what_waits_for_the_guest_is_bounded() {
        let (mut guest, _agent) = pair();
        let mut count = 0;
        let refused = loop {
            let request = Request::Delete { container: "x".repeat(1 << 20) };
            match guest.call(request, "delete".into(), count) {
                Ok(()) => count += 1,
                Err((_, failure)) => break failure,
            }
        };
        assert_eq!((count, refused.cause.as_str()), (15, "too many requests wait for the guest"));
        assert_eq!(guest.abandon().len(), 15);
    }
}
