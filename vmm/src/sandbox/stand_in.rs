//! The process that a container in the machine of another has on the host: who watches over containers by the end, the signals
//! and the namespaces of a process finds all of them here.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use agent::ProcessId;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::launch::LaunchError;
use super::processes::window_size;
use super::{GUEST_DIED, Signals, init_of};
use crate::control::{Answer, Client, ClientError, Connection, Reply, Request};

/// Stands in for `container` until it ends: its exit status. The container lives no longer than this process, which holds
/// the connection that it was made over.
pub(super) fn stand_in(
    mut creator: Connection,
    id: u64,
    container: &str,
    mut signals: Signals,
) -> Result<u8, LaunchError> {
    let sandbox = creator.take_fds(1).and_then(|mut fds| fds.pop()).ok_or(LaunchError::NotConfigured)?;
    let mut client = Client::from_stream(UnixStream::from(sandbox));
    let process = init_of(container);
    let wait = client.send(&Request::Wait { process: process.clone() }, &[])?;
    creator.send(&Answer { id, result: Ok(Reply::Done) })?;
    loop {
        match client.receive(Some(Duration::ZERO)) {
            Ok(answer) if answer.id == wait => return Ok(status(answer)),
            Ok(_) => continue,
            Err(ClientError::Timeout(_)) => {}
            Err(error) => return Ok(lost(&error)),
        }
        while let Some(signal) = signals.next() {
            hand_on(&mut client, &process, signal)?;
        }
        let mut ready = [&client.as_fd(), &signals.as_fd()].map(|fd| PollFd::new(*fd, PollFlags::POLLIN));
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(LaunchError::System("wait for the container", error.into())),
        }
    }
}

fn status(answer: Answer) -> u8 {
    match answer.result {
        Ok(Reply::Exited(status)) => status.code(),
        Ok(_) => GUEST_DIED,
        Err(failure) => lost(&failure),
    }
}

fn lost(error: &(dyn std::error::Error + 'static)) -> u8 {
    tracing::error!("the container is lost with its machine: {}", crate::chain(error));
    GUEST_DIED
}

fn hand_on(client: &mut Client, process: &ProcessId, signal: Signal) -> Result<(), ClientError> {
    let process = process.clone();
    let request = match signal {
        Signal::SIGWINCH => match own_terminal().as_ref().and_then(window_size) {
            Some(size) => Request::Resize { process, size },
            None => return Ok(()),
        },
        signal => Request::Signal { process, signal: signal as i32, all: false },
    };
    client.send(&request, &[]).map(drop)
}

/// The terminal that was opened for the container controls this process.
fn own_terminal() -> Option<OwnedFd> {
    File::open("/dev/tty").ok().map(OwnedFd::from)
}
