//! The error of a request, and its conversion into the failure that is sent to the VMM.

use std::path::Path;

use agent::{Failure, FailureKind};
use rustix::io::Errno;
use thiserror::Error;

/// The reason why a request failed.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// A system call failed.
    #[error("{step}")]
    System {
        /// The step that failed, and its object.
        step: String,
        /// The error of the system call.
        source: Errno,
    },
    /// The specification asks for something invalid or unsupported.
    #[error("{field}: {reason}")]
    Invalid {
        /// The property of the specification, as `linux.resources.cpu.shares`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The program to run was not found.
    #[error("exec: \"{program}\": {reason}")]
    ProgramNotFound {
        /// As the specification names it.
        program: String,
        /// Where the agent searched.
        reason: String,
    },
    /// The program to run cannot be executed.
    #[error("exec: \"{program}\": {reason}")]
    ProgramNotExecutable {
        /// As the specification names it.
        program: String,
        /// The reason.
        reason: String,
    },
    /// There is no such container or process.
    #[error("{0} does not exist")]
    NotFound(String),
    /// The id is already in use.
    #[error("{0} exists already")]
    Exists(String),
    /// The container is not in the state the request needs.
    #[error("{container} is {state}")]
    WrongState {
        /// The container.
        container: String,
        /// Its state.
        state: &'static str,
    },
    /// A hook of the container failed.
    #[error("error running startContainer hook #{number}: {cause}")]
    Hook {
        /// Index of the hook, from 0.
        number: usize,
        /// The reason.
        cause: String,
    },
    /// A helper process failed and reported the reason.
    #[error("{0}")]
    Reported(Failure),
    /// A process ended before it reported success or failure.
    #[error("{step}: the process ended before it was set up")]
    EndedEarly {
        /// The purpose of the process.
        step: String,
    },
}

impl Error {
    /// For `map_err`: names the step in which a system call failed.
    pub(crate) fn at(step: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        move |source| Self::System { step: step.into(), source }
    }

    /// For `map_err`: names the step and the path of its object.
    pub(crate) fn on(step: &str, path: impl AsRef<Path>) -> impl FnOnce(Errno) -> Self {
        move |source| Self::System { step: format!("{step} {}", path.as_ref().display()), source }
    }

    /// A property of the specification that is invalid or unsupported.
    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }

    fn kind(&self) -> FailureKind {
        match self {
            Self::System { .. } | Self::Hook { .. } | Self::EndedEarly { .. } => FailureKind::System,
            Self::Reported(failure) => failure.kind,
            Self::Invalid { .. } => FailureKind::InvalidSpec,
            Self::ProgramNotFound { .. } => FailureKind::ProgramNotFound,
            Self::ProgramNotExecutable { .. } => FailureKind::ProgramNotExecutable,
            Self::NotFound(_) => FailureKind::NotFound,
            Self::Exists(_) => FailureKind::Exists,
            Self::WrongState { .. } => FailureKind::WrongState,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let kind = error.kind();
        let (step, cause) = match error {
            Error::Reported(failure) => return failure,
            Error::System { step, source } => (step, errno_text(source)),
            Error::Invalid { field, reason } => (field, reason),
            Error::ProgramNotFound { program, reason } | Error::ProgramNotExecutable { program, reason } => {
                (format!("exec: \"{program}\""), reason)
            }
            Error::NotFound(object) => (object, "does not exist".into()),
            Error::Exists(object) => (object, "exists already".into()),
            Error::WrongState { container, state } => (container, format!("is {state}")),
            Error::Hook { number, cause } => (format!("error running startContainer hook #{number}"), cause),
            Error::EndedEarly { step } => (step, "the process ended before it was set up".into()),
        };
        Self { kind, step, cause }
    }
}

/// The C library's text of an error, in lower case like runc's messages.
pub(crate) fn errno_text(error: Errno) -> String {
    let text = std::io::Error::from(error).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// An error and all its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_step_object_and_cause_once() {
        let failure = Failure::from(Error::on("mount", "/proc")(Errno::NODEV));
        assert_eq!(failure.to_string(), "mount /proc: no such device");
        assert_eq!(failure.kind, FailureKind::System);
    }

    #[test]
    fn the_message_for_a_missing_program_is_the_one_of_runc() {
        let reason = "executable file not found in $PATH".to_owned();
        let failure = Failure::from(Error::ProgramNotFound { program: "foo".into(), reason });
        assert_eq!(failure.to_string(), "exec: \"foo\": executable file not found in $PATH");
    }
}
