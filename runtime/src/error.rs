//! Why a command failed, and what that means for its exit status.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use agent::FailureKind;
use thiserror::Error;

use crate::bundle::BundleError;
use crate::caller::CallerError;
use crate::cgroup::CgroupError;
use crate::config::ConfigError;
use crate::connection::RequestError;
use crate::devices::DeviceError;
use crate::hooks::HookError;
use crate::id::InvalidId;
use crate::joined::JoinError;
use crate::log::LogError;
use crate::network::NetworkError;
use crate::network_namespace::NetworkNamespaceError;
use crate::resources::ResourcesError;
use crate::rights::RightsError;
use crate::rootless::RootlessError;
use crate::sandbox::SandboxError;
use crate::seccomp::SeccompError;
use crate::shares::ShareError;
use crate::signals::SignalError;
use crate::sizing::SizeError;
use crate::state::StateError;
use crate::stdio::StdioError;
use crate::systemd::SystemdError;

/// Why a command failed.
#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Id(#[from] InvalidId),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Size(#[from] SizeError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error("duplicate the descriptor of the network namespace")]
    NetworkDescriptor(#[source] io::Error),
    #[error(transparent)]
    NetworkNamespace(#[from] NetworkNamespaceError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    #[error(transparent)]
    Share(#[from] ShareError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Stdio(#[from] StdioError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("limit the VMM's cgroup")]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    CgroupTaken(CgroupError),
    #[error("linux.resources.{field} holds on the host, and needs a cgroup there")]
    CgroupNeeded { field: &'static str, source: CgroupError },
    #[error(transparent)]
    Caller(#[from] CallerError),
    #[error(transparent)]
    Rootless(#[from] RootlessError),
    #[error(transparent)]
    Systemd(#[from] SystemdError),
    #[error("a cgroup is left")]
    Leftover(#[source] CgroupError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A further process was not started.
    #[error(transparent)]
    Exec(RequestError),
    #[error(transparent)]
    Signal(#[from] SignalError),
    #[error("root directory {}", path.display())]
    Root { path: PathBuf, source: io::Error },
    #[error("read the host's boot id")]
    BootId(#[source] io::Error),
    #[error("take over signals")]
    Signals(#[source] nix::Error),
    #[error("write pid file {}", path.display())]
    PidFile { path: PathBuf, source: io::Error },
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
    #[error("start the process that stands for the exec")]
    Proxy(#[source] nix::Error),
    #[error("cannot start an already running container")]
    AlreadyRunning,
    #[error("cannot start a container that has stopped")]
    HasStopped,
    #[error("cannot start a container in the paused state")]
    StartPaused,
    #[error("container is still being created")]
    BeingCreated,
    #[error("cannot delete container {id} that is not stopped: {status}")]
    NotStopped { id: String, status: &'static str },
    #[error("cannot exec in a stopped container")]
    ExecInStopped,
    #[error("cannot exec in a paused container (use --ignore-paused to override)")]
    ExecInPaused,
    #[error("container not running")]
    NotRunning,
    #[error("container not paused")]
    NotPaused,
    #[error("container with id {0} is not running")]
    IdNotRunning(String),
    #[error("ps option or column `{0}` is not supported: known are -e -f -a -x -u -A -w and -o LIST")]
    PsOption(String),
    #[error("{0} is not supported yet")]
    NotYet(&'static str),
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
    /// The exit status this failure has whatever the command; otherwise the command decides.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        const KILLED: u8 = 137;
        match self {
            Self::Request(RequestError::Interrupted(signal)) | Self::Exec(RequestError::Interrupted(signal)) => {
                u8::try_from(128 + *signal as i32).ok()
            }
            Self::Request(error) => match error.kind()? {
                FailureKind::ProgramNotFound => Some(127),
                FailureKind::ProgramNotExecutable => Some(126),
                FailureKind::GuestDied => Some(255),
                _ => None,
            },
            Self::SandboxEnded => Some(KILLED),
            Self::Sandbox(SandboxError::Ended(ending)) if ending.was_killed() => Some(KILLED),
            _ => None,
        }
    }
}

/// The error's text and those of what caused it, each once.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(cause(error).trim_end());
        source = error.source();
    }
    text
}

/// A cause's text; those of the operating system as Go has them, and so runc: in lower case and without their number.
fn cause(error: &(dyn StdError + 'static)) -> String {
    let Some(number) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) else {
        return error.to_string();
    };
    let text = error.to_string();
    let text = text.strip_suffix(&format!(" (os error {number})")).unwrap_or(&text);
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use agent::Failure;

    use super::*;

    #[test]
    fn causes_follow_once() {
        let source = io::Error::from_raw_os_error(2);
        let error = Error::from(BundleError::NoBundle { path: "/x".into(), source });
        assert_eq!(chain(&error), "chdir /x: no such file or directory");
        let source = io::Error::other("Said by nobody");
        assert_eq!(chain(&BundleError::NoBundle { path: "/x".into(), source }), "chdir /x: Said by nobody");
    }

    #[test]
    fn a_missing_program_has_the_shells_status() {
        let status = |kind| {
            let failure = Failure { kind, step: String::new(), cause: String::new() };
            Error::from(RequestError::Failure(failure).about("x")).exit_code()
        };
        assert_eq!(status(FailureKind::ProgramNotFound), Some(127));
        assert_eq!(status(FailureKind::ProgramNotExecutable), Some(126));
        assert_eq!(status(FailureKind::System), None);
    }
}
