//! The errors of commands, and their exit status.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::base::config::ConfigError;
use crate::base::container_id::InvalidId;
use crate::host::oom_notifier::OomNotifierError;
use crate::host::scm_rights::RightsError;
use crate::host::signals::SignalError;
use crate::sandbox::connection::RequestError;
use crate::sandbox::create::CreateError;
use crate::sandbox::delete::DeleteError;
use crate::sandbox::error::SandboxError;
use crate::sandbox::events::EventsError;
use crate::sandbox::exec::ExecError;
use crate::sandbox::helper::HelperError;
use crate::sandbox::interfaces::InterfacesError;
use crate::sandbox::kill::KillError;
use crate::sandbox::pause::PauseError;
use crate::sandbox::pid_file::PidFileError;
use crate::sandbox::start::StartError;
use crate::sandbox::store::StateError;
use crate::sandbox::template::{MakeError, TemplateStoreError};
use crate::sandbox::update::UpdateError;
use crate::sandbox::vmm_process::{KILLED, VmmError};
use crate::spec::error::BundleError;
use crate::spec::resources::ResourcesError;
use crate::terminal::stdio::StdioError;

/// The reason why a command failed.
#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Id(#[from] InvalidId),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Create(#[from] CreateError),
    #[error(transparent)]
    TemplateStore(#[from] TemplateStoreError),
    #[error(transparent)]
    MakeTemplate(#[from] MakeError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Update(#[from] UpdateError),
    #[error(transparent)]
    Delete(#[from] DeleteError),
    #[error(transparent)]
    Interfaces(#[from] InterfacesError),
    #[error(transparent)]
    Helper(#[from] HelperError),
    #[error(transparent)]
    OomNotifier(#[from] OomNotifierError),
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    #[error(transparent)]
    Stdio(#[from] StdioError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Vmm(#[from] VmmError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error(transparent)]
    Kill(#[from] KillError),
    #[error(transparent)]
    Pause(#[from] PauseError),
    #[error(transparent)]
    Events(#[from] EventsError),
    #[error(transparent)]
    Signal(#[from] SignalError),
    #[error("block signals")]
    Signals(#[source] nix::Error),
    #[error(transparent)]
    Rights(#[from] RightsError),
    #[error(transparent)]
    Resources(#[from] ResourcesError),
    #[error("read {}", path.display())]
    ResourcesFile { path: PathBuf, source: io::Error },
    #[error("{} is no valid JSON", path.display())]
    ResourcesJson { path: PathBuf, source: serde_json::Error },
    #[error("read {}", path.display())]
    ProcessFile { path: PathBuf, source: io::Error },
    #[error("{} is no valid process", path.display())]
    ProcessJson { path: PathBuf, source: serde_json::Error },
    #[error("write {}", path.display())]
    SpecFile { path: PathBuf, source: io::Error },
    #[error("write the output")]
    Output(#[source] io::Error),
    #[error("encode the output")]
    Encode(#[source] serde_json::Error),
    #[error("the sandbox ended")]
    SandboxEnded,
    #[error("examine this process")]
    OwnProcess(#[source] io::Error),
    #[error("start the proxy of the process")]
    Proxy(#[source] nix::Error),
    #[error("cannot delete container {id} that is not stopped: {status}")]
    NotStopped { id: String, status: &'static str },
    #[error("ps option or column `{0}` is not supported; supported options are -e -f -a -x -u -A -w and -o LIST")]
    PsOption(String),
    #[error("{0} is not supported yet")]
    NotSupported(&'static str),
    #[error("process args cannot be empty")]
    NoExecArgs,
    #[error("parsing {text} as int for {what} failed")]
    Number { text: String, what: &'static str, source: std::num::ParseIntError },
    #[error("invalid --cgroup argument: {0}")]
    SubCgroup(String),
    #[error("File config.json exists. Remove it first")]
    SpecExists,
    #[error("{option} {reason}")]
    Refused { option: &'static str, reason: &'static str },
}

impl Error {
    /// The exit status of a command that fails with this error; `None` if it depends on the command.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Create(error) => error.exit_code(),
            Self::Start(error) => error.exit_code(),
            Self::Update(error) => error.exit_code(),
            Self::Interfaces(error) => error.exit_code(),
            Self::Sandbox(error) => error.exit_code(),
            Self::Vmm(error) => error.exit_code(),
            Self::Request(error) => error.exit_code(),
            Self::Exec(error) => error.exit_code(),
            Self::Kill(error) => error.exit_code(),
            Self::Pause(error) => error.exit_code(),
            Self::Events(error) => error.exit_code(),
            Self::SandboxEnded => Some(KILLED),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use agent::{Failure, FailureKind};

    use super::*;

    #[test]
    fn a_missing_program_exits_with_127_and_one_that_cannot_be_executed_with_126() {
        let status = |kind| {
            let failure = Failure { kind, step: String::new(), cause: String::new() };
            Error::from(RequestError::Failure(failure).for_program("x")).exit_code()
        };
        assert_eq!(status(FailureKind::ProgramNotFound), Some(127));
        assert_eq!(status(FailureKind::ProgramNotExecutable), Some(126));
        assert_eq!(status(FailureKind::System), None);
    }
}
