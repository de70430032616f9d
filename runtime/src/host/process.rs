//! Processes of the host, identified by pid and start time, so that a reused pid is not taken for the old process.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// Time between two looks at a process for which there is no pidfd.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

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

    /// Whether the process still runs. A zombie does not count as running. A process that cannot be examined, because this one has no
    /// descriptor left for example, does.
    pub(crate) fn is_alive(self) -> bool {
        self.runs().unwrap_or(true)
    }

    /// Whether the process still runs.
    ///
    /// # Errors
    /// The process cannot be examined.
    fn runs(self) -> io::Result<bool> {
        match Stat::read(self.pid) {
            Ok(stat) => Ok(stat.start_time == self.start_time && !stat.dead),
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::SRCH)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Opens a pidfd; `None` if the process has ended.
    ///
    /// # Errors
    /// This process has no descriptor or no memory left.
    pub(crate) fn open(self) -> io::Result<Option<PidFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            // The pid may have been reused before the pidfd was opened, so the start time is compared afterwards.
            Ok(pidfd) => Ok(self.runs()?.then_some(PidFd(pidfd))),
            // The pid is unused, or that of another process's thread.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the process has ended. Returns whether it ended within `timeout`.
    pub(crate) fn wait(self, timeout: Duration) -> bool {
        match self.open() {
            Ok(process) => process.is_none_or(|process| process.wait(timeout)),
            Err(_) => self.look_until_ended(timeout),
        }
    }

    /// Kills the process and waits until it has ended. Returns whether it ended within `timeout`.
    pub(crate) fn kill_and_wait(self, timeout: Duration) -> bool {
        match self.open() {
            Ok(None) => true,
            Ok(Some(process)) => {
                process.kill();
                process.wait(timeout)
            }
            Err(_) => {
                // Without a pidfd, only the look just before the signal tells that the pid was not reused.
                if let (Ok(true), Some(pid)) = (self.runs(), Pid::from_raw(self.pid)) {
                    let _ = kill_process(pid, Signal::KILL);
                }
                self.look_until_ended(timeout)
            }
        }
    }

    /// Waits without a pidfd.
    fn look_until_ended(self, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        while self.is_alive() {
            if Instant::now() >= end {
                return false;
            }
            thread::sleep(LOOK_INTERVAL);
        }
        true
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

    use nix::sys::resource::{Resource, setrlimit};

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
        assert!(!other_start.is_alive() && other_start.open().unwrap().is_none());
        assert!(other_start.kill_and_wait(Duration::ZERO) && process.is_alive());
        assert!(other_start.wait(Duration::ZERO) && !process.wait(Duration::from_millis(10)));
        assert!(process.kill_and_wait(Duration::from_secs(10)));
        assert!(process.wait(Duration::ZERO));
        assert!(!process.is_alive(), "a zombie counts as dead");
        child.wait().unwrap();
        assert!(HostProcess::of(process.pid).is_err());
    }

    #[test]
    fn a_process_is_killed_without_a_free_descriptor() {
        // The limit holds for the whole process, so a child has it: this test, alone, in a process of its own.
        if std::env::var_os("VMRT_TEST_WITHOUT_DESCRIPTORS").is_none() {
            let name = "host::process::tests::a_process_is_killed_without_a_free_descriptor";
            let mut test = Command::new(std::env::current_exe().unwrap());
            test.args(["--exact", name, "--test-threads=1"]).env("VMRT_TEST_WITHOUT_DESCRIPTORS", "1");
            assert!(test.output().unwrap().status.success());
            return;
        }
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let process = HostProcess::of(i32::try_from(child.id()).unwrap()).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 64, 64).unwrap();
        // One descriptor is left, which is enough for a look, but not for a pidfd and a look.
        let mut files: Vec<_> = std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
        assert!(process.is_alive(), "it cannot be examined");
        assert!(!process.wait(Duration::ZERO));
        files.pop();
        assert!(process.open().is_err());
        assert!(process.kill_and_wait(Duration::from_secs(10)));
        drop(files);
        child.wait().unwrap();
    }
}
