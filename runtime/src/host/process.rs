//! Processes of the host, identified by pid and start time, so that a reused pid is not taken for the old process.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A pid and a start time, which together are unique until the next boot.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HostProcess {
    pub(crate) pid: i32,
    /// Clock ticks from boot to the start of the process: field 22 of `/proc/PID/stat`, proc_pid_stat(5).
    pub(crate) start_time: u64,
}

/// A pidfd of a process.
#[derive(Debug)]
pub(crate) struct PidFd(OwnedFd);

impl HostProcess {
    /// No process. It is never alive.
    pub(crate) const NONE: Self = Self { pid: 0, start_time: 0 };

    /// Identifies the process that has this pid now.
    ///
    /// # Errors
    /// No process has this pid, or its `/proc/PID/stat` cannot be read.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let stat = Stat::read(pid)?;
        Ok(Self { pid, start_time: stat.start_time })
    }

    /// Whether the process still runs. A zombie does not count as running.
    pub(crate) fn is_alive(self) -> bool {
        Stat::read(self.pid).is_ok_and(|stat| stat.start_time == self.start_time && !stat.dead)
    }

    /// Opens a pidfd; `None` if the process has ended.
    pub(crate) fn open(self) -> Option<PidFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // The pid may have been reused before the pidfd was opened, so the start time is compared afterwards.
        self.is_alive().then_some(PidFd(pidfd))
    }

    /// Waits until the process has ended. Returns whether it ended within `timeout`.
    pub(crate) fn wait(self, timeout: Duration) -> bool {
        self.open().is_none_or(|process| process.wait(timeout))
    }

    /// Kills the process and waits until it has ended. Returns whether it ended within `timeout`.
    pub(crate) fn kill_and_wait(self, timeout: Duration) -> bool {
        let Some(process) = self.open() else { return true };
        process.kill();
        process.wait(timeout)
    }
}

impl PidFd {
    /// Sends `SIGKILL`. A process that has ended already is no error.
    pub(crate) fn kill(&self) {
        // The only other error is a lack of permission. Then the caller's wait times out.
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
    }

    /// Waits until the process has ended. Returns whether it ended within `timeout`.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
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

    /// Parses the text of `/proc/PID/stat`, proc_pid_stat(5). The name in parentheses may contain any character, so fields are
    /// counted from the last parenthesis, after which field 3 is the state.
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let dead = matches!(fields.next()?, "Z" | "X" | "x");
        Some(Self { dead, start_time: fields.nth(18)?.parse().ok()? })
    }
}

/// Reads the random id of the host's current boot.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_name_may_contain_parentheses() {
        let stat = Stat::parse("7 (a) Z) R 1 1 1 0 -1 4 1 1 1 1 1 1 1 1 20 0 1 0 4242 9 9").unwrap();
        assert!(!stat.dead);
        assert_eq!(stat.start_time, 4242);
        assert!(Stat::parse("7 (x) R 1").is_none());
    }

    #[test]
    fn a_killed_process_is_dead_and_a_reused_pid_is_another_process() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let process = HostProcess::of(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(process.is_alive() && !HostProcess::NONE.is_alive());
        let other_start = HostProcess { start_time: process.start_time + 1, ..process };
        assert!(!other_start.is_alive() && other_start.open().is_none());
        assert!(other_start.kill_and_wait(Duration::ZERO) && process.is_alive());
        assert!(other_start.wait(Duration::ZERO) && !process.wait(Duration::from_millis(10)));
        assert!(process.kill_and_wait(Duration::from_secs(10)));
        assert!(process.wait(Duration::ZERO));
        assert!(!process.is_alive(), "a zombie counts as dead");
        child.wait().unwrap();
        assert!(HostProcess::of(process.pid).is_err());
    }
}
