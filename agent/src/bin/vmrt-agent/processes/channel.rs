//! How a new process and the agent talk until the process's program runs.
//!
//! A socket pair that keeps messages apart. The new process says [`Report::Ready`] when all is set up and waits for
//! one message that lets it go on. Its end closes itself when the program is executed, so the end of the connection
//! is the sign of success; anything that fails is reported first.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use agent::{Failure, FailureKind};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The longest report, in bytes.
const LIMIT: usize = 64 << 10;

/// What a new process says.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Report {
    /// Everything is set up.
    Ready {
        /// The number its terminal's other end has in the process.
        terminal: Option<RawFd>,
    },
    /// It ends now, because of this.
    Failed(Failure),
}

/// One end of the connection.
pub(crate) struct Channel(OwnedFd);

impl Channel {
    /// The agent's end, which does not block, and the process's.
    pub(crate) fn pair() -> Result<(Self, Self), Error> {
        let flags = SocketFlags::CLOEXEC;
        let pair = || {
            let (near, far) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            rustix::io::ioctl_fionbio(&near, true)?;
            Ok((Self(near), Self(far)))
        };
        pair().map_err(Error::at("make a socket pair for the new process"))
    }

    /// An end that is open as `fd`.
    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// In the process: sends a report. If the agent is gone there is nobody to tell.
    pub(crate) fn report(&self, report: &Report) {
        if let Ok(message) = serde_json::to_vec(report) {
            let _ = rustix::net::send(&self.0, &message, SendFlags::NOSIGNAL);
        }
    }

    /// In the process: waits until it may go on. False if the agent does not want that.
    pub(crate) fn wait(&self) -> bool {
        loop {
            match rustix::io::read(&self.0, &mut [0; 1]) {
                Err(Errno::INTR) => {}
                result => return result == Ok(1),
            }
        }
    }

    /// In the agent: lets the process go on.
    pub(crate) fn release(&self) -> rustix::io::Result<()> {
        rustix::net::send(&self.0, &[1], SendFlags::NOSIGNAL).map(drop)
    }

    /// In the agent: what has come. The inner `None` is the end of the connection.
    pub(crate) fn receive(&self) -> rustix::io::Result<Option<Report>> {
        let mut message = vec![0; LIMIT];
        let (count, _) = rustix::net::recv(&self.0, message.as_mut_slice(), RecvFlags::empty())?;
        if count == 0 {
            return Ok(None);
        }
        let report = serde_json::from_slice(&message[..count]);
        Ok(Some(report.unwrap_or_else(|error| Report::Failed(unreadable(&error)))))
    }
}

fn unreadable(error: &serde_json::Error) -> Failure {
    let step = "read the report of the new process".into();
    Failure { kind: FailureKind::System, step, cause: error.to_string() }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_arrive_one_by_one_and_the_end_is_told() {
        let (near, far) = Channel::pair().unwrap();
        assert_eq!(near.receive().unwrap_err(), Errno::AGAIN);
        far.report(&Report::Ready { terminal: Some(4) });
        near.release().unwrap();
        assert!(far.wait());
        far.report(&Report::Failed(Error::at("exec")(Errno::NOENT).into()));
        drop(far);
        assert!(matches!(near.receive().unwrap(), Some(Report::Ready { terminal: Some(4) })));
        assert!(matches!(near.receive().unwrap(), Some(Report::Failed(failure)) if failure.step == "exec"));
        assert!(near.receive().unwrap().is_none());
    }

    #[test]
    fn an_agent_that_lets_go_of_a_process_ends_its_wait() {
        let (near, far) = Channel::pair().unwrap();
        drop(near);
        assert!(!far.wait());
    }
}
