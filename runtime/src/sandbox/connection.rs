//! A command's control connection to a sandbox, which also waits for signals and for the end of the VMM.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use agent::{Failure, FailureKind};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use thiserror::Error;
use vmm::control::{Answer, Client, ClientError, Reply, Request};

use crate::host::process::PidFd;
use crate::host::signals::Signals;

/// The reason why a request to a sandbox failed.
#[derive(Debug, Error)]
pub(crate) enum RequestError {
    /// A program cannot be executed. Engines parse the cause from this message, which is runc's.
    #[error("unable to start container process: exec: \"{program}\": {cause}")]
    Program { program: String, cause: String, kind: FailureKind },
    #[error(transparent)]
    Failure(Failure),
    #[error(transparent)]
    Client(ClientError),
    #[error("interrupted by {0}")]
    Interrupted(Signal),
    #[error("{step}: no answer within {timeout:?}; `vmrt check` tells whether this host can run virtual machines")]
    NoAnswer { step: &'static str, timeout: Duration },
    #[error("unexpected reply from the sandbox")]
    UnexpectedReply,
    #[error("wait for the sandbox")]
    Wait(#[source] std::io::Error),
}

impl From<ClientError> for RequestError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Failure(failure) => Self::Failure(failure),
            error => Self::Client(error),
        }
    }
}

impl RequestError {
    /// Converts a failure to execute `program` to runc's message.
    pub(crate) fn for_program(self, program: &str) -> Self {
        let Self::Failure(Failure { kind, step, cause }) = self else { return self };
        let program = program.to_owned();
        match kind {
            FailureKind::ProgramNotFound | FailureKind::ProgramNotExecutable => Self::Program { program, cause, kind },
            _ => Self::Failure(Failure { kind, step, cause }),
        }
    }

    /// The kind of the failure, if the sandbox reported one.
    pub(crate) fn kind(&self) -> Option<FailureKind> {
        match self {
            Self::Program { kind, .. } | Self::Failure(Failure { kind, .. }) => Some(*kind),
            _ => None,
        }
    }

    /// The exit status of a command that fails with this error; `None` if it depends on the command.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        if let Self::Interrupted(signal) = self {
            return u8::try_from(128 + *signal as i32).ok();
        }
        match self.kind()? {
            FailureKind::ProgramNotFound => Some(127),
            FailureKind::ProgramNotExecutable => Some(126),
            FailureKind::GuestDied => Some(255),
            _ => None,
        }
    }

    /// Whether the guest died. Its VMM then ends by itself.
    pub(crate) fn is_guest_death(&self) -> bool {
        self.kind() == Some(FailureKind::GuestDied)
    }

    /// Whether the VMM closed the connection, or does not accept one, because it ends or has ended.
    pub(crate) fn is_disconnect(&self) -> bool {
        matches!(self, Self::Client(ClientError::Closed | ClientError::Connect { .. }))
    }
}

/// An event on a connection.
#[derive(Debug)]
pub(crate) enum Event {
    Answer(Answer),
    Signal(Signal),
    /// The VMM closed the connection. Returned once.
    Closed,
    /// The VMM's process ended.
    VmmEnded,
}

/// A control connection, with the signals and the VMM process to wait for at the same time.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) signals: Option<Signals>,
    /// The VMM's process, if the command waits for its end.
    pub(crate) vmm: Option<PidFd>,
    closed: bool,
}

impl Connection {
    pub(crate) fn new(client: Client, signals: Option<Signals>, vmm: Option<PidFd>) -> Self {
        Self { client, signals, vmm, closed: false }
    }

    /// Waits for the next event; returns `None` at the deadline. Answers that the VMM sent come before its end.
    pub(crate) fn next(&mut self, deadline: Option<Instant>) -> Result<Option<Event>, RequestError> {
        loop {
            if !self.closed {
                match self.client.receive(Some(Duration::ZERO)) {
                    Ok(answer) => return Ok(Some(Event::Answer(answer))),
                    Err(ClientError::Timeout(_)) => {}
                    Err(ClientError::Closed) => {
                        self.closed = true;
                        return Ok(Some(Event::Closed));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            if let Some(signal) = self.signals.as_ref().and_then(Signals::next) {
                return Ok(Some(Event::Signal(signal)));
            }
            if self.vmm.as_ref().is_some_and(|vmm| vmm.wait(Duration::ZERO)) {
                return Ok(Some(Event::VmmEnded));
            }
            if !self.wait(deadline)? {
                return Ok(None);
            }
        }
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// This request or one before it failed, the VMM ended, no answer came within `timeout`, or a signal that ends the command
    /// came. `step` describes the request in an error.
    pub(crate) fn call(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd],
        step: &'static str,
        timeout: Duration,
    ) -> Result<Reply, RequestError> {
        let id = self.client.send(request, fds)?;
        self.wait_for(id, step, timeout)
    }

    /// Waits for the answer to the request `id`.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub(crate) fn wait_for(&mut self, id: u64, step: &'static str, timeout: Duration) -> Result<Reply, RequestError> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.next(Some(deadline))? {
                None => return Err(RequestError::NoAnswer { step, timeout }),
                Some(Event::Answer(answer)) => {
                    let reply = answer.result.map_err(RequestError::Failure)?;
                    if answer.id == id {
                        return Ok(reply);
                    }
                }
                Some(Event::Signal(signal @ (Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP | Signal::SIGQUIT))) => {
                    return Err(RequestError::Interrupted(signal));
                }
                Some(Event::Signal(_)) => {}
                Some(Event::Closed | Event::VmmEnded) => return Err(RequestError::Client(ClientError::Closed)),
            }
        }
    }

    /// The file descriptors that this connection uses.
    pub(crate) fn raw_fds(&self) -> Vec<RawFd> {
        let signals = self.signals.as_ref().map(AsFd::as_fd);
        let fds = [Some(self.client.as_fd()), signals, self.vmm.as_ref().map(AsFd::as_fd)];
        fds.iter().flatten().map(AsRawFd::as_raw_fd).collect()
    }

    /// Waits until a descriptor is ready. Returns `false` at the deadline.
    fn wait(&self, deadline: Option<Instant>) -> Result<bool, RequestError> {
        let timeout = match deadline {
            None => PollTimeout::NONE,
            Some(end) => {
                let left = end.saturating_duration_since(Instant::now());
                PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
            }
        };
        let client = (!self.closed).then(|| self.client.as_fd());
        let signals = self.signals.as_ref().map(AsFd::as_fd);
        let fds = [client, signals, self.vmm.as_ref().map(AsFd::as_fd)];
        let mut polled: Vec<_> = fds.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut polled, timeout) {
            Ok(0) => Ok(false),
            Ok(_) | Err(Errno::EINTR) => Ok(true),
            Err(error) => Err(RequestError::Wait(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use agent::frame;
    use vmm::control::Call;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Connection::new(Client::from_stream(ours), None, None), theirs)
    }

    fn failure(kind: FailureKind) -> Failure {
        Failure { kind, step: "do it".into(), cause: "exec format error".into() }
    }

    #[test]
    fn a_failed_earlier_request_ends_a_call() {
        let (mut connection, mut vmm) = pair();
        let first = connection.client.send(&Request::Timeline, &[]).unwrap();
        frame::write(&mut vmm, &Answer { id: first, result: Err(failure(FailureKind::System)) }).unwrap();
        let error = connection.call(&Request::Timeline, &[], "test", LONG).unwrap_err();
        assert_eq!(error.to_string(), "do it: exec format error");
    }

    #[test]
    fn answers_come_before_the_closed_event_which_comes_once() {
        let (mut connection, mut vmm) = pair();
        let id = connection.client.send(&Request::Timeline, &[]).unwrap();
        let _: Call = frame::read(&mut vmm).unwrap().unwrap();
        frame::write(&mut vmm, &Answer { id, result: Ok(Reply::Done) }).unwrap();
        drop(vmm);
        assert!(matches!(connection.next(None).unwrap(), Some(Event::Answer(_))));
        assert!(matches!(connection.next(None).unwrap(), Some(Event::Closed)));
        assert!(connection.next(Some(Instant::now())).unwrap().is_none());
    }

    #[test]
    fn a_missing_answer_is_reported_with_its_step() {
        let (mut connection, _vmm) = pair();
        let error = connection.call(&Request::Timeline, &[], "boot", Duration::from_millis(20)).unwrap_err();
        assert!(error.to_string().starts_with("boot: no answer within 20ms"), "{error}");
    }

    #[test]
    fn a_missing_program_is_reported_as_by_runc_with_the_guests_reason() {
        let text = |kind, cause: &str| {
            let failure = Failure { cause: cause.into(), ..failure(kind) };
            RequestError::Failure(failure).for_program("x").to_string()
        };
        let prefix = "unable to start container process: exec: \"x\": ";
        for (kind, cause) in [
            (FailureKind::ProgramNotFound, "executable file not found in $PATH"),
            (FailureKind::ProgramNotFound, "its interpreter /no/sh: no such file or directory"),
            (FailureKind::ProgramNotExecutable, "exec format error"),
        ] {
            assert_eq!(text(kind, cause), format!("{prefix}{cause}"));
        }
        assert_eq!(text(FailureKind::System, "no memory"), "do it: no memory");
    }
}
