//! The agent's own log: lines in the guest kernel's log, the only place that is there from the first instruction on.

use std::fmt::Display;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use crate::error::{self, Error};

static KERNEL_LOG: OnceLock<OwnedFd> = OnceLock::new();

/// How much a line matters: the kernel's levels.
#[derive(Clone, Copy)]
pub(crate) enum Level {
    /// The machine goes down for it; shown even where the kernel is told to be quiet.
    Fatal = 0,
    /// Something did not work, and the agent goes on.
    Warning = 4,
}

/// Lines go to `kernel_log`, an open `/dev/kmsg`, from now on.
pub(crate) fn set_up(kernel_log: OwnedFd) {
    // Only the first call counts, and there is only one.
    let _ = KERNEL_LOG.set(kernel_log);
}

/// Writes one line. A line that cannot be written is lost: there is nowhere to say so.
pub(crate) fn line(level: Level, message: impl Display) {
    if let Some(log) = KERNEL_LOG.get() {
        let who = match level {
            Level::Fatal => "vmrt-agent gave up", // the VMM knows these words
            Level::Warning => "vmrt-agent",
        };
        let line = format!("<{}>{who}: {message}\n", level as u8);
        let _ = rustix::io::write(log, line.as_bytes());
    }
}

/// Says what went wrong where the guest can go on without it.
pub(crate) fn warn(result: Result<(), Error>) {
    if let Err(error) = result {
        line(Level::Warning, error::chain(&error));
    }
}
