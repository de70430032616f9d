//! The wait of a foreground command for a process in the guest: it forwards signals and changes of the terminal's size.

use std::os::fd::BorrowedFd;

use agent::{ContainerRequest, ExitStatus, ProcessId, TerminalSize};
use nix::sys::signal::{Signal, raise};
use vmm::control::{Client, ClientError, Reply, Request};

use crate::sandbox::connection::{Connection, Event, RequestError};
use crate::terminal::tty::{self, RawTerminal};

/// The host's terminal that the process's terminal is connected to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HostTerminal<'a> {
    /// The process has no terminal.
    None,
    /// The terminal that the command runs on.
    Own(&'a RawTerminal),
    /// A console that was created for the caller.
    Console(BorrowedFd<'a>),
}

impl HostTerminal<'_> {
    fn size(self) -> Option<TerminalSize> {
        match self {
            Self::None => None,
            Self::Own(terminal) => terminal.size(),
            Self::Console(fd) => tty::size(&fd),
        }
    }
}

/// Waits until `process` has ended and its output has been passed on.
///
/// # Errors
/// The request failed, or the VMM ended without an answer.
pub(crate) fn wait(
    connection: &mut Connection,
    process: &ProcessId,
    terminal: HostTerminal,
) -> Result<ExitStatus, RequestError> {
    let wait = connection.client.send(&Request::Wait { process: process.clone() }, &[])?;
    loop {
        match connection.next(None)? {
            Some(Event::Answer(answer)) if answer.id == wait => return exit_status(answer.result),
            // Answers to signals and sizes are ignored: the process may have ended before them.
            Some(Event::Answer(_)) | None => {}
            Some(Event::Signal(signal)) => handle_signal(&mut connection.client, process, signal, terminal)?,
            Some(Event::Closed | Event::VmmEnded) => return Err(RequestError::Client(ClientError::Closed)),
        }
    }
}

fn exit_status(result: Result<Reply, agent::Failure>) -> Result<ExitStatus, RequestError> {
    match result.map_err(RequestError::Failure)? {
        Reply::Exited(status) => Ok(status),
        _ => Err(RequestError::UnexpectedReply),
    }
}

/// Forwards a signal to the process. Signals of the command's own terminal are handled here.
fn handle_signal(
    client: &mut Client,
    process: &ProcessId,
    signal: Signal,
    terminal: HostTerminal,
) -> Result<(), ClientError> {
    match (signal, terminal) {
        (Signal::SIGWINCH, _) => resize(client, process, terminal),
        (Signal::SIGTSTP, HostTerminal::Own(raw)) => {
            raw.restore();
            // The command stops here. SIGCONT, which continues it, is handled next and sets the raw mode again.
            let _ = raise(Signal::SIGSTOP);
            Ok(())
        }
        (Signal::SIGCONT, HostTerminal::Own(raw)) => {
            // If the terminal was closed meanwhile, the next read of it fails.
            let _ = raw.set_raw();
            resize(client, process, terminal)
        }
        (signal, _) => {
            let request = Request::Container(ContainerRequest::Signal {
                process: process.clone(),
                signal: signal as i32,
                all: false,
            });
            client.send(&request, &[]).map(drop)
        }
    }
}

fn resize(client: &mut Client, process: &ProcessId, terminal: HostTerminal) -> Result<(), ClientError> {
    let Some(size) = terminal.size() else { return Ok(()) };
    client.send(&Request::Container(ContainerRequest::Resize { process: process.clone(), size }), &[]).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use agent::frame;
    use vmm::control::{Answer, Call};

    use super::*;
    use crate::host::signals::Signals;

    fn process() -> ProcessId {
        ProcessId { container: "web".into(), exec: None }
    }

    /// A VMM that reports the process as killed by the signal that it receives.
    fn vmm(mut stream: UnixStream, waiter: nix::sys::pthread::Pthread) {
        let wait: Call = frame::read(&mut stream).unwrap().unwrap();
        assert!(matches!(wait.request, Request::Wait { .. }));
        nix::sys::pthread::pthread_kill(waiter, Signal::SIGUSR1).unwrap();
        let call: Call = frame::read(&mut stream).unwrap().unwrap();
        let Request::Container(ContainerRequest::Signal { signal, all: false, .. }) = call.request else {
            panic!("{call:?}")
        };
        frame::write(&mut stream, &Answer { id: call.id, result: Ok(Reply::Done) }).unwrap();
        let status = ExitStatus::Signaled(u8::try_from(signal).unwrap());
        frame::write(&mut stream, &Answer { id: wait.id, result: Ok(Reply::Exited(status)) }).unwrap();
    }

    #[test]
    fn a_signal_is_forwarded_and_the_exit_status_is_returned() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let signals = Signals::block(false).unwrap();
        let waiter = nix::sys::pthread::pthread_self();
        let vmm = thread::spawn(move || vmm(theirs, waiter));
        let mut connection = Connection::new(Client::from_stream(ours), Some(signals), None);
        let status = wait(&mut connection, &process(), HostTerminal::None).unwrap();
        assert_eq!(status.code(), 138);
        vmm.join().unwrap();
    }

    #[test]
    fn the_end_of_the_vmm_ends_the_wait() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(Client::from_stream(ours), None, None);
        let closer = thread::spawn(move || drop(frame::read::<Call>(&mut { theirs })));
        let error = wait(&mut connection, &process(), HostTerminal::None).unwrap_err();
        assert!(error.is_disconnect(), "{error}");
        closer.join().unwrap();
    }
}
