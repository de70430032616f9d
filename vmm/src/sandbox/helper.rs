//! Programs that do on the host what is not the VMM's to do itself.

use std::io::{self, PipeReader, Read};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, ExitStatus, Stdio};

use event_manager::{EventOps, EventSet, Events};

/// A program that runs.
#[derive(Debug)]
pub(super) struct Helper {
    process: Child,
    /// What it has to say, if something goes wrong. Closed by its end.
    words: PipeReader,
    watched: bool,
}

impl Helper {
    /// Starts `command`.
    pub(super) fn spawn(mut command: Command) -> io::Result<Self> {
        let (words, theirs) = io::pipe()?;
        command.stdin(Stdio::null()).stdout(theirs.try_clone()?).stderr(theirs);
        Ok(Self { process: command.spawn()?, words, watched: false })
    }

    /// Has the event loop tell of its end, as `token`; of a helper that is watched already there is nothing to do.
    pub(super) fn watch(&mut self, token: u32, ops: &mut EventOps) -> event_manager::Result<()> {
        if self.watched {
            return Ok(());
        }
        self.watched = true;
        // No event is asked for: that nobody can write any more is always told.
        ops.add(Events::with_data_raw(self.words.as_raw_fd(), token, EventSet::empty()))
    }

    /// How it ended, and its words: once the event loop has told of its end.
    pub(super) fn bury(mut self, ops: &mut EventOps) -> io::Result<(ExitStatus, String)> {
        if let Err(error) = ops.remove(Events::empty_raw(self.words.as_raw_fd())) {
            tracing::warn!(%error, "cannot forget a helper");
        }
        let mut words = String::new();
        self.words.read_to_string(&mut words)?;
        Ok((self.process.wait()?, words))
    }

    /// Ends it.
    pub(super) fn abandon(mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
