//! Failures that clients receive, and the exit status of a sandbox whose guest failed.

use std::fmt::Display;

use agent::{Failure, FailureKind, ProcessId};

use super::containers::Absent;

/// Exit status of a VMM whose guest failed before the main container's first process ended.
pub const GUEST_DIED: u8 = 255;

/// A failure of `kind` while doing `step`.
pub(super) fn failure(kind: FailureKind, step: impl Into<String>, cause: impl Display) -> Failure {
    Failure { kind, step: step.into(), cause: cause.to_string() }
}

/// The failure of a request for a process that does not run.
pub(super) fn absent_failure(process: &ProcessId, absent: Absent) -> Failure {
    let step = match &process.exec {
        Some(exec) => format!("find process {exec} of container {}", process.container),
        None => format!("find container {}", process.container),
    };
    match absent {
        Absent::Unknown => failure(FailureKind::NotFound, step, "there is none of that name in this sandbox"),
        Absent::Ended => failure(FailureKind::WrongState, step, "it is not running"),
    }
}

/// The failure of a request that adds or removes a share.
pub(super) fn share_failure(step: &str, error: &crate::fs::ShareError) -> Failure {
    failure(FailureKind::System, step, crate::chain(error))
}
