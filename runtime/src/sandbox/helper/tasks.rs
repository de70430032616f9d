//! The tasks of the helper. Each runs a command of this program, one at a time. A command ends with the VMM: it is in the VMM's cgroup,
//! which is removed then, and may wait for the lock of whoever removes it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vmm::helper::{Task, TaskResult, receive_task, send_result};

use super::command::{CommandEnd, run, vmm_ends_within};
use crate::host::oom_notifier;
use crate::sandbox::interfaces::UPDATE_COMMAND;

/// Time between the starts of two tasks of one kind, so that a VMM that was taken over cannot keep the host busy.
const INTERVAL: Duration = Duration::from_millis(500);

/// Most messages that the helper writes to the log, which it shares with the VMM.
const MAX_MESSAGES: usize = 100;

/// This program.
const PROGRAM: &str = "/proc/self/exe";

/// What the helper needs to do tasks for one container.
pub(super) struct Tasks {
    root: PathBuf,
    id: String,
    /// When the last task of each kind was started: of OOM kills and of interfaces.
    last: [Option<Instant>; 2],
    /// Number of messages in the log.
    messages: usize,
}

impl Tasks {
    pub(super) fn new(root: PathBuf, id: String) -> Self {
        Self { root, id, last: [None; 2], messages: 0 }
    }

    /// Does the tasks that come over `connection`, until the VMM ends.
    pub(super) fn serve(&mut self, connection: &OwnedFd) -> io::Result<()> {
        while let Some(task) = receive_task(connection.as_fd())? {
            if vmm_ends_within(connection, self.time_to_turn(task))? {
                return Ok(());
            }
            let is_done = match run(&mut self.command(task), connection) {
                Ok(None) => return Ok(()),
                Ok(Some(end)) => self.is_done(task, &end),
                Err(error) => {
                    self.warn(&format!("cannot run a command for the VMM: {error}"));
                    false
                }
            };
            // If the VMM has ended, the next message says so.
            let _ = send_result(connection.as_fd(), TaskResult { task, is_done });
        }
        Ok(())
    }

    /// Whether the task was done by a command that ended like this. Logs why not.
    fn is_done(&mut self, task: Task, end: &CommandEnd) -> bool {
        let is_done = match task {
            // The OOM notifier has done its work when the kernel has killed it.
            Task::CountOomKill => end.status.code().is_none(),
            Task::UpdateInterfaces => end.status.success(),
        };
        if !is_done {
            self.warn(String::from_utf8_lossy(&end.message).trim_end());
        }
        is_done
    }

    /// Writes a message to the log, unless the helper has written its share: a guest can cause as many as it likes.
    fn warn(&mut self, message: &str) {
        if self.messages < MAX_MESSAGES {
            self.messages += 1;
            eprintln!(" WARN {message}");
        }
    }

    /// The time until a task of this kind may start. It is taken as started then.
    fn time_to_turn(&mut self, task: Task) -> Duration {
        let last = match task {
            Task::CountOomKill => &mut self.last[0],
            Task::UpdateInterfaces => &mut self.last[1],
        };
        let wait = last.map_or(Duration::ZERO, |last| INTERVAL.saturating_sub(last.elapsed()));
        *last = Some(Instant::now() + wait);
        wait
    }

    fn command(&self, task: Task) -> Command {
        let mut command = Command::new(PROGRAM);
        match task {
            Task::CountOomKill => command.arg(oom_notifier::COMMAND),
            Task::UpdateInterfaces => command.args([
                OsStr::new("--root"),
                self.root.as_os_str(),
                UPDATE_COMMAND.as_ref(),
                Path::new(&self.id).as_os_str(),
            ]),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }
}
