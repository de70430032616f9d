//! Processes of the host that this command did not necessarily start, named so that a reused pid is not mistaken.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A process and when it started, which together are unique until the next boot.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HostProcess {
    pub(crate) pid: i32,
    /// Clock ticks from boot to its start: field 22 of `/proc/PID/stat`.
    pub(crate) start_time: u64,
}

/// A living process, or its zombie: the pid is not reused while this is held open.
#[derive(Debug)]
pub(crate) struct PidFd(OwnedFd);

impl HostProcess {
    /// No process: never alive.
    pub(crate) const NONE: Self = Self { pid: 0, start_time: 0 };

    /// The process that has this pid now.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let stat = Stat::read(pid)?;
        Ok(Self { pid, start_time: stat.start_time })
    }

    /// Whether it still runs; a zombie does not.
    pub(crate) fn is_alive(self) -> bool {
        Stat::read(self.pid).is_ok_and(|stat| stat.start_time == self.start_time && !stat.dead)
    }

    /// Takes hold of it; `None` when it is gone.
    pub(crate) fn open(self) -> Option<PidFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Only now is it sure that the start time belongs to the process that was opened.
        self.is_alive().then_some(PidFd(pidfd))
    }

    /// Waits until it is gone; whether it is.
    pub(crate) fn wait(self, patience: Duration) -> bool {
        self.open().is_none_or(|process| process.wait(patience))
    }

    /// Kills it and waits until it is gone; whether it is.
    pub(crate) fn kill_and_wait(self, patience: Duration) -> bool {
        let Some(process) = self.open() else { return true };
        process.kill();
        process.wait(patience)
    }
}

impl PidFd {
    /// Sends `SIGKILL`; a process that is gone already is as good.
    pub(crate) fn kill(&self) {
        // The one other error is a lack of permission, which the wait behind it tells.
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
    }

    /// Waits for its end; whether that came in time.
    pub(crate) fn wait(&self, patience: Duration) -> bool {
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], timeout) == Ok(1)
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

struct Stat {
    dead: bool,
    start_time: u64,
}

impl Stat {
    fn read(pid: i32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "bad /proc/PID/stat"))
    }

    /// The name in parentheses may hold anything, so fields are counted from the last parenthesis: state is the third.
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let dead = matches!(fields.next()?, "Z" | "X" | "x");
        Some(Self { dead, start_time: fields.nth(18)?.parse().ok()? })
    }
}

/// The random id of this boot of the host.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn stat_is_read_behind_any_name() {
        let stat = Stat::parse("7 (a) Z) R 1 1 1 0 -1 4 1 1 1 1 1 1 1 1 20 0 1 0 4242 9 9").unwrap();
        assert!(!stat.dead);
        assert_eq!(stat.start_time, 4242);
        assert!(Stat::parse("7 (x) R 1").is_none());
    }

    #[test]
    fn a_process_is_alive_until_it_is_killed_and_no_other_is_taken_for_it() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let process = HostProcess::of(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(process.is_alive() && !HostProcess::NONE.is_alive());
        let namesake = HostProcess { start_time: process.start_time + 1, ..process };
        assert!(!namesake.is_alive() && namesake.open().is_none());
        assert!(namesake.kill_and_wait(Duration::ZERO) && process.is_alive());
        assert!(namesake.wait(Duration::ZERO) && !process.wait(Duration::from_millis(10)));
        assert!(process.kill_and_wait(Duration::from_secs(10)));
        assert!(process.wait(Duration::ZERO));
        assert!(!process.is_alive(), "its zombie counts as dead");
        child.wait().unwrap();
        assert!(HostProcess::of(process.pid).is_err());
    }
}
