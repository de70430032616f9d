//! The tasks that the helper does outside the jail ([`crate::helper`]), of each kind at most one at a time.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use crate::helper::{self, Task, TaskResult};

/// The connection to the helper, and the tasks that it does.
#[derive(Debug)]
pub(super) struct HelperTasks {
    connection: OwnedFd,
    running: Vec<Task>,
}

impl HelperTasks {
    pub(super) fn new(connection: OwnedFd) -> Self {
        Self { connection, running: Vec::new() }
    }

    /// Whether the helper does the task.
    pub(super) fn is_running(&self, task: Task) -> bool {
        self.running.contains(&task)
    }

    /// Starts a task. Has no effect if the helper does it already.
    ///
    /// # Errors
    /// The helper has ended.
    pub(super) fn start(&mut self, task: Task) -> io::Result<()> {
        if !self.is_running(task) {
            helper::send_task(self.connection.as_fd(), task)?;
            self.running.push(task);
        }
        Ok(())
    }

    /// The next finished task; `None` if there is none.
    ///
    /// # Errors
    /// The helper has ended, or broke the protocol. No task runs then.
    pub(super) fn next_result(&mut self) -> io::Result<Option<TaskResult>> {
        match helper::receive_result(self.connection.as_fd()) {
            Ok(Some(result)) => {
                self.running.retain(|task| *task != result.task);
                Ok(Some(result))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            ended => {
                self.running.clear();
                Err(ended.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()))
            }
        }
    }
}

impl AsRawFd for HelperTasks {
    fn as_raw_fd(&self) -> RawFd {
        self.connection.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_runs_is_not_started_again() {
        let (vmm, helper) = helper::connection().unwrap();
        let mut tasks = HelperTasks::new(vmm);
        for _ in 0..2 {
            tasks.start(Task::CountOomKill).unwrap();
        }
        assert!(tasks.is_running(Task::CountOomKill) && !tasks.is_running(Task::UpdateInterfaces));
        assert_eq!(tasks.next_result().unwrap(), None);
        assert_eq!(helper::receive_task(helper.as_fd()).unwrap(), Some(Task::CountOomKill));
        let result = TaskResult { task: Task::CountOomKill, is_done: false };
        helper::send_result(helper.as_fd(), result).unwrap();
        assert_eq!(tasks.next_result().unwrap(), Some(result));
        assert!(!tasks.is_running(Task::CountOomKill));
        tasks.start(Task::UpdateInterfaces).unwrap();
        assert_eq!(helper::receive_task(helper.as_fd()).unwrap(), Some(Task::UpdateInterfaces));
        drop(helper);
        assert!(tasks.next_result().is_err() && !tasks.is_running(Task::UpdateInterfaces));
        assert!(tasks.start(Task::CountOomKill).is_err());
    }
}
