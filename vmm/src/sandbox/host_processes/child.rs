//! A child process of the VMM whose end the event loop reports.

use std::io::{self, PipeReader, Read};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, ExitStatus, Stdio};

use event_manager::{EventOps, EventSet, Events};

/// A running child process.
#[derive(Debug)]
pub(in crate::sandbox) struct ChildProcess {
    process: Child,
    /// Its standard output and standard error. The write end closes with the process.
    output: PipeReader,
    is_watched: bool,
}

impl ChildProcess {
    /// Starts `command` with an empty standard input.
    ///
    /// # Errors
    /// The pipe or the process cannot be created.
    pub(super) fn spawn(mut command: Command) -> io::Result<Self> {
        let (output, writer) = io::pipe()?;
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        Ok(Self { process: command.spawn()?, output, is_watched: false })
    }

    /// Makes the event loop report the end of the process with `token`. Has no effect on a process that is watched already.
    pub(super) fn watch(&mut self, token: u32, ops: &mut EventOps) -> event_manager::Result<()> {
        if self.is_watched {
            return Ok(());
        }
        self.is_watched = true;
        // epoll(7) reports a hang-up also for an empty event set.
        ops.add(Events::with_data_raw(self.output.as_raw_fd(), token, EventSet::empty()))
    }

    /// The exit status and the output of the process. Call it after the event loop has reported the end.
    ///
    /// # Errors
    /// The output cannot be read, or the process cannot be waited for.
    pub(in crate::sandbox) fn reap(mut self, ops: &mut EventOps) -> io::Result<(ExitStatus, String)> {
        if let Err(error) = ops.remove(Events::empty_raw(self.output.as_raw_fd())) {
            tracing::warn!(%error, "cannot stop watching a child process");
        }
        let mut output = String::new();
        self.output.read_to_string(&mut output)?;
        Ok((self.process.wait()?, output))
    }

    /// Kills the process and waits for it.
    pub(super) fn kill(mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
