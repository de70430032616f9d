//! The connection between the agent and a new process until the process executes its program.
//!
//! It is a socket pair that preserves message boundaries. When the new process is set up it reports [`Report::Ready`]
//! and waits for one message that releases it. Its end is close-on-exec, so the end of the connection indicates
//! success. A failure is reported before the process ends.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use agent::{Failure, FailureKind};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Maximum length of a report, in bytes.
const LIMIT: usize = 64 << 10;

/// A report of a new process.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Report {
    /// The set-up is complete.
    Ready {
        /// The process's descriptor of the terminal's master.
        terminal: Option<RawFd>,
    },
    /// The process ends because of this failure.
    Failed(Failure),
}

/// One end of the connection.
pub(crate) struct Channel(OwnedFd);

impl Channel {
    /// The agent's end, which is non-blocking, and the process's end.
    pub(crate) fn pair() -> Result<(Self, Self), Error> {
        let flags = SocketFlags::CLOEXEC;
        let pair = || {
            let (agent, process) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            rustix::io::ioctl_fionbio(&agent, true)?;
            Ok((Self(agent), Self(process)))
        };
        pair().map_err(Error::at("make a socket pair for the new process"))
    }

    /// An end that is already open as `fd`.
    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// In the process: sends a report. Errors are ignored, because they mean that the agent is gone.
    pub(crate) fn report(&self, report: &Report) {
        if let Ok(message) = serde_json::to_vec(report) {
            let _ = rustix::net::send(&self.0, &message, SendFlags::NOSIGNAL);
        }
    }

    /// In the process: waits for the release. False if the agent closed its end instead.
    pub(crate) fn wait(&self) -> bool {
        loop {
            match rustix::io::read(&self.0, &mut [0; 1]) {
                Err(Errno::INTR) => {}
                result => return result == Ok(1),
            }
        }
    }

    /// In the agent: releases the process.
    pub(crate) fn release(&self) -> rustix::io::Result<()> {
        rustix::net::send(&self.0, &[1], SendFlags::NOSIGNAL).map(drop)
    }

    /// In the agent: receives a report. `Ok(None)` is the end of the connection.
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
    fn reports_arrive_separately_followed_by_the_end() {
        let (agent, process) = Channel::pair().unwrap();
        assert_eq!(agent.receive().unwrap_err(), Errno::AGAIN);
        process.report(&Report::Ready { terminal: Some(4) });
        agent.release().unwrap();
        assert!(process.wait());
        process.report(&Report::Failed(Error::at("exec")(Errno::NOENT).into()));
        drop(process);
        assert!(matches!(agent.receive().unwrap(), Some(Report::Ready { terminal: Some(4) })));
        assert!(matches!(agent.receive().unwrap(), Some(Report::Failed(failure)) if failure.step == "exec"));
        assert!(agent.receive().unwrap().is_none());
    }

    #[test]
    fn a_closed_agent_end_ends_the_wait_of_the_process() {
        let (agent, process) = Channel::pair().unwrap();
        drop(agent);
        assert!(!process.wait());
    }
}
