//! A command that stays with a process: it hands signals on, tells changes of the terminal's size, and waits.

use std::os::fd::BorrowedFd;

use agent::{ExitStatus, ProcessId, TerminalSize};
use nix::sys::signal::{Signal, raise};
use vmm::control::{Client, ClientError, Reply, Request};

use crate::sandbox::connection::{Connection, Event, RequestError};
use crate::terminal::tty::{self, RawTerminal};

/// What the process's terminal is shown on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Screen<'a> {
    /// It has none.
    None,
    /// The command's own terminal.
    Own(&'a RawTerminal),
    /// A terminal that was made for the caller.
    Made(BorrowedFd<'a>),
}

impl Screen<'_> {
    fn size(self) -> Option<TerminalSize> {
        match self {
            Self::None => None,
            Self::Own(terminal) => terminal.size(),
            Self::Made(fd) => tty::size(&fd),
        }
    }
}

/// Waits until `process` ended and its output was handed over. The VMM's end without a word is an error.
pub(crate) fn wait(
    connection: &mut Connection,
    process: &ProcessId,
    screen: Screen,
) -> Result<ExitStatus, RequestError> {
    let wait = connection.client.send(&Request::Wait { process: process.clone() }, &[])?;
    loop {
        match connection.next(None)? {
            Some(Event::Answer(answer)) if answer.id == wait => return exited(answer.result),
            // Answers to signals and sizes: what they meant may be gone by now, which is no fault.
            Some(Event::Answer(_)) | None => {}
            Some(Event::Signal(signal)) => take(&mut connection.client, process, signal, screen)?,
            Some(Event::Closed | Event::VmmEnded) => return Err(RequestError::Client(ClientError::Closed)),
        }
    }
}

fn exited(result: Result<Reply, agent::Failure>) -> Result<ExitStatus, RequestError> {
    match result.map_err(RequestError::Failure)? {
        Reply::Exited(status) => Ok(status),
        _ => Err(RequestError::Confused),
    }
}

fn take(client: &mut Client, process: &ProcessId, signal: Signal, screen: Screen) -> Result<(), ClientError> {
    match (signal, screen) {
        (Signal::SIGWINCH, _) => resize(client, process, screen),
        (Signal::SIGTSTP, Screen::Own(terminal)) => {
            terminal.restore();
            // Stops here until a SIGCONT, which then makes the terminal raw again.
            let _ = raise(Signal::SIGSTOP);
            Ok(())
        }
        (Signal::SIGCONT, Screen::Own(terminal)) => {
            // A terminal that was taken away meanwhile is noticed when it is read.
            let _ = terminal.set_raw();
            resize(client, process, screen)
        }
        (signal, _) => {
            let request = Request::Signal { process: process.clone(), signal: signal as i32, all: false };
            client.send(&request, &[]).map(drop)
        }
    }
}

fn resize(client: &mut Client, process: &ProcessId, screen: Screen) -> Result<(), ClientError> {
    let Some(size) = screen.size() else { return Ok(()) };
    client.send(&Request::Resize { process: process.clone(), size }, &[]).map(drop)
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

    /// A VMM that ends the process when it gets a signal, with the signal's number.
    fn vmm(mut stream: UnixStream, waiter: nix::sys::pthread::Pthread) {
        let wait: Call = frame::read(&mut stream).unwrap().unwrap();
        assert!(matches!(wait.request, Request::Wait { .. }));
        nix::sys::pthread::pthread_kill(waiter, Signal::SIGUSR1).unwrap();
        let call: Call = frame::read(&mut stream).unwrap().unwrap();
        let Request::Signal { signal, all: false, .. } = call.request else { panic!("{call:?}") };
        frame::write(&mut stream, &Answer { id: call.id, result: Ok(Reply::Done) }).unwrap();
        let status = ExitStatus::Signaled(u8::try_from(signal).unwrap());
        frame::write(&mut stream, &Answer { id: wait.id, result: Ok(Reply::Exited(status)) }).unwrap();
    }

    #[test]
    fn a_signal_reaches_the_process_and_its_end_comes_back() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let signals = Signals::block(false).unwrap();
        let waiter = nix::sys::pthread::pthread_self();
        let vmm = thread::spawn(move || vmm(theirs, waiter));
        let mut connection = Connection::new(Client::from_stream(ours), Some(signals), None);
        let status = wait(&mut connection, &process(), Screen::None).unwrap();
        assert_eq!(status.code(), 138);
        vmm.join().unwrap();
    }

    #[test]
    fn the_end_of_the_vmm_ends_the_wait() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(Client::from_stream(ours), None, None);
        let closer = thread::spawn(move || drop(frame::read::<Call>(&mut { theirs })));
        let error = wait(&mut connection, &process(), Screen::None).unwrap_err();
        assert!(error.is_end(), "{error}");
        closer.join().unwrap();
    }
}
