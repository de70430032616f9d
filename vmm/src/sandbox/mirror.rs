//! Has the host count a death for want of memory in the guest, see [`crate::victim`].

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdout, Command, Stdio};

use event_manager::{EventOps, EventSet, Events};

use super::{MIRROR, Sandbox};
use crate::victim;

/// The victim on the host, while there is one.
#[derive(Debug)]
pub(super) struct Mirror {
    program: OsString,
    victim: Option<Victim>,
}

#[derive(Debug)]
struct Victim {
    process: Child,
    /// What it has to say if it is not killed. Closed by its end.
    words: ChildStdout,
    watched: bool,
}

impl Mirror {
    /// One whose victims run `program`, which is `vmrt-vmm`.
    pub(super) fn new(program: OsString) -> Self {
        Self { program, victim: None }
    }

    /// Whether the host has not counted yet.
    pub(super) fn is_busy(&self) -> bool {
        self.victim.is_some()
    }

    /// Begins to have a death counted. Deaths that happen meanwhile are one with it, as they are for the guest's agent.
    fn begin(&mut self) -> io::Result<()> {
        if self.victim.is_none() {
            let mut command = Command::new(&self.program);
            command.arg(victim::ARGUMENT).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
            let mut process = command.spawn()?;
            let words = process.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
            self.victim = Some(Victim { process, words, watched: false });
        }
        Ok(())
    }
}

impl Sandbox {
    /// Has the host count a death in the main container, whose cgroup the VMM's is.
    pub(super) fn mirror_death(&mut self) {
        if let Err(error) = self.mirror.begin() {
            tracing::warn!(%error, "cannot have the host count a death for want of memory");
        }
    }

    /// Watches a new victim.
    pub(super) fn watch_victim(&mut self, ops: &mut EventOps) {
        let Some(victim) = self.mirror.victim.as_mut().filter(|victim| !victim.watched) else { return };
        victim.watched = true;
        if let Err(error) = ops.add(Events::with_data_raw(victim.words.as_raw_fd(), MIRROR, EventSet::IN)) {
            tracing::warn!(%error, "cannot watch the victim of a want of memory");
            self.bury_victim(None);
        }
    }

    /// The victim is dead, or about to be.
    pub(super) fn bury_victim(&mut self, ops: Option<&mut EventOps>) {
        let Some(mut victim) = self.mirror.victim.take() else { return };
        if let Some(Err(error)) = ops.map(|ops| ops.remove(Events::empty_raw(victim.words.as_raw_fd()))) {
            tracing::warn!(%error, "cannot forget the victim of a want of memory");
        }
        // Where it cannot even be watched, it is not waited for, either.
        let _ = victim.process.kill();
        let mut words = String::new();
        // What it could not say is not needed.
        let _ = victim.words.read_to_string(&mut words);
        match victim.process.wait() {
            Ok(status) if words.is_empty() => tracing::debug!(%status, "the host counted a death for want of memory"),
            _ => tracing::warn!("the host did not count a death for want of memory: {}", words.trim_end()),
        }
    }
}
