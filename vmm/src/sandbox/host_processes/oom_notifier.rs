//! Runs the OOM notifier ([`crate::process::oom_notifier`]), so that the host counts an OOM kill of the guest.

use std::ffi::OsString;
use std::io;
use std::process::Command;

use event_manager::EventOps;

use super::ChildProcess;
use crate::process::oom_notifier::ARGUMENT;

/// The OOM notifier process, if one runs.
#[derive(Debug)]
pub(in crate::sandbox) struct OomNotifier {
    /// The `vmrt-vmm` program; `None` if OOM kills are not reported to the host.
    program: Option<OsString>,
    child: Option<ChildProcess>,
}

impl OomNotifier {
    /// An OOM notifier that runs `program`, which is `vmrt-vmm`. Without a program it does nothing.
    pub(in crate::sandbox) fn new(program: Option<OsString>) -> Self {
        Self { program, child: None }
    }

    /// Whether the process runs.
    pub(in crate::sandbox) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Starts the process. Has no effect if one runs: OOM kills in quick succession are counted as one, as the agent does.
    ///
    /// # Errors
    /// The process cannot be started.
    pub(in crate::sandbox) fn start(&mut self) -> io::Result<()> {
        if let (None, Some(program)) = (&self.child, &self.program) {
            let mut command = Command::new(program);
            command.arg(ARGUMENT);
            self.child = Some(ChildProcess::spawn(command)?);
        }
        Ok(())
    }

    /// Makes the event loop report the end of the process with `token`. Kills a process that cannot be watched.
    ///
    /// # Errors
    /// The event loop refused.
    pub(in crate::sandbox) fn watch(&mut self, token: u32, ops: &mut EventOps) -> event_manager::Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        child.watch(token, ops).inspect_err(|_| self.child.take().into_iter().for_each(ChildProcess::kill))
    }

    /// Removes the process, to reap it.
    pub(in crate::sandbox) fn take(&mut self) -> Option<ChildProcess> {
        self.child.take()
    }
}
