//! The host process of a container that runs in another container's machine. Engines identify a container by a process: they
//! wait for its end, send it signals and use its namespaces. This process has the namespaces, forwards signals to the
//! container, and ends with it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use agent::{ContainerRequest, ProcessId};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use thiserror::Error;

use super::containers::{first_process, window_size};
use super::failures::GUEST_DIED;
use super::signals::Signals;
use crate::config::JailConfig;
use crate::control::{Answer, Client, ClientError, Connection, ConnectionError, Reply, Request};
use crate::jail::seccomp::{self, ThreadClass};
use crate::jail::{self, JailError};

/// Why a process cannot be a container's proxy.
#[derive(Debug, Error)]
pub enum ProxyError {
    /// The request came without a connection to the container's sandbox.
    #[error("the first request does not configure the sandbox")]
    NoSandbox,
    /// The client that started this process does not take the answer.
    #[error("cannot receive the sandbox's configuration")]
    Creator(#[from] ConnectionError),
    /// The connection to the container's sandbox failed.
    #[error("cannot talk to the container's sandbox")]
    Sandbox(#[from] ClientError),
    /// The process cannot confine itself.
    #[error("the container's process cannot confine itself")]
    Jail(#[from] JailError),
    /// The system calls of the process cannot be limited.
    #[error("cannot limit the system calls of the container's process")]
    Seccomp(#[source] io::Error),
    /// `poll` failed.
    #[error("cannot wait for the container")]
    Poll(#[source] io::Error),
}

/// Forwards signals to `container` until it ends, and returns its exit status; [`GUEST_DIED`] if the connection to its
/// sandbox is lost.
///
/// `creator` is the inherited connection, and `id` its first request. The connection to the sandbox comes with that request.
/// The container was created over it, so the sandbox ends the container when this process ends.
///
/// # Errors
/// The connection to the sandbox is missing or refuses the first requests, or a system call failed.
pub(super) fn run(
    mut creator: Connection,
    (id, container): (u64, &str),
    jail: &JailConfig,
    mut signals: Signals,
) -> Result<u8, ProxyError> {
    let terminal = controlling_terminal();
    let sandbox = creator.take_fds(1).and_then(|mut fds| fds.pop()).ok_or(ProxyError::NoSandbox)?;
    jail::enter(jail)?;
    jail::drop_capabilities()?;
    seccomp::confine(ThreadClass::EventLoop).map_err(ProxyError::Seccomp)?;
    let mut client = Client::from_stream(UnixStream::from(sandbox));
    let process = first_process(container);
    let wait = client.send(&Request::Wait { process: process.clone() }, &[])?;
    creator.send(&Answer { id, result: Ok(Reply::Done) })?;
    loop {
        match client.receive(Some(Duration::ZERO)) {
            Ok(answer) if answer.id == wait => return Ok(exit_status(answer)),
            Ok(_) => continue,
            Err(ClientError::Timeout(_)) => {}
            Err(error) => return Ok(connection_lost(&error)),
        }
        while let Some(signal) = signals.next() {
            forward(&mut client, &process, terminal.as_ref(), signal)?;
        }
        let mut ready = [&client.as_fd(), &signals.as_fd()].map(|fd| PollFd::new(*fd, PollFlags::POLLIN));
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(ProxyError::Poll(error.into())),
        }
    }
}

fn exit_status(answer: Answer) -> u8 {
    match answer.result {
        Ok(Reply::Exited(status)) => status.code(),
        Ok(_) => GUEST_DIED,
        Err(failure) => connection_lost(&failure),
    }
}

fn connection_lost(error: &(dyn std::error::Error + 'static)) -> u8 {
    tracing::error!("the container is lost with its machine: {}", crate::chain(error));
    GUEST_DIED
}

/// Forwards a signal. `SIGWINCH` becomes the new size of the terminal.
fn forward(
    client: &mut Client,
    process: &ProcessId,
    terminal: Option<&OwnedFd>,
    signal: Signal,
) -> Result<(), ClientError> {
    let process = process.clone();
    let request = match signal {
        Signal::SIGWINCH => match terminal.and_then(window_size) {
            Some(size) => Request::Container(ContainerRequest::Resize { process, size }),
            None => return Ok(()),
        },
        signal => Request::Container(ContainerRequest::Signal { process, signal: signal as i32, all: false }),
    };
    client.send(&request, &[]).map(drop)
}

/// The runtime makes the container's terminal the controlling terminal of this process.
fn controlling_terminal() -> Option<OwnedFd> {
    File::open("/dev/tty").ok().map(OwnedFd::from)
}
