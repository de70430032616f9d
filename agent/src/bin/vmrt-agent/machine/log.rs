//! The agent's log: lines in the guest kernel's log, which is available from the start.

use std::fmt::Display;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use crate::error::{self, Error};

static KERNEL_LOG: OnceLock<OwnedFd> = OnceLock::new();

/// The severity of a line, as the kernel's log levels.
#[derive(Clone, Copy)]
pub(crate) enum Level {
    /// The error ends the machine. Shown even with the kernel parameter `quiet`.
    Fatal = 0,
    /// Something failed, and the agent continues.
    Warning = 4,
}

/// Writes further lines to `kernel_log`, an open `/dev/kmsg`.
pub(crate) fn set_up(kernel_log: OwnedFd) {
    // There is only one call; a second one would have no effect.
    let _ = KERNEL_LOG.set(kernel_log);
}

/// Writes one line. If that fails, the line is lost.
pub(crate) fn line(level: Level, message: impl Display) {
    if let Some(log) = KERNEL_LOG.get() {
        let prefix = match level {
            Level::Fatal => "vmrt-agent gave up", // the VMM searches for this text
            Level::Warning => "vmrt-agent",
        };
        let line = format!("<{}>{prefix}: {message}\n", level as u8);
        let _ = rustix::io::write(log, line.as_bytes());
    }
}

/// Logs the error of something that the guest can do without.
pub(crate) fn warn(result: Result<(), Error>) {
    if let Err(error) = result {
        line(Level::Warning, error::chain(&error));
    }
}
