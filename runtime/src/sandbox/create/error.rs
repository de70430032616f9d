//! The errors of `create`.

use std::io;

use thiserror::Error;

use crate::base::config::ConfigError;
use crate::files::shares::ShareError;
use crate::host::caller::CallerError;
use crate::host::cgroup::placement::PlacementError;
use crate::host::hooks::HookError;
use crate::host::network::NetworkError;
use crate::host::network_namespace::NetworkNamespaceError;
use crate::host::scm_rights::RightsError;
use crate::host::user_namespace::RootlessError;
use crate::sandbox::connection::RequestError;
use crate::sandbox::error::SandboxError;
use crate::sandbox::helper::HelperError;
use crate::sandbox::interfaces::InterfacesError;
use crate::sandbox::machine_files::MachineFilesError;
use crate::sandbox::pid_file::PidFileError;
use crate::sandbox::shared::JoinError;
use crate::sandbox::store::StateError;
use crate::sandbox::vmm_process::VmmError;
use crate::spec::devices::DeviceError;
use crate::spec::error::BundleError;
use crate::spec::seccomp::SeccompError;
use crate::spec::sizing::SizeError;
use crate::terminal::stdio::StdioError;

/// The reason why a container was not created. Nothing of it is left.
#[derive(Debug, Error)]
pub(crate) enum CreateError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Size(#[from] SizeError),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Share(#[from] ShareError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Caller(#[from] CallerError),
    #[error(transparent)]
    Rootless(#[from] RootlessError),
    #[error(transparent)]
    NetworkNamespace(#[from] NetworkNamespaceError),
    #[error("duplicate the descriptor of the network namespace")]
    NetworkDescriptor(#[source] io::Error),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Interfaces(#[from] InterfacesError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("read the host's boot id")]
    BootId(#[source] io::Error),
    #[error(transparent)]
    Stdio(#[from] StdioError),
    #[error("block signals")]
    Signals(#[source] nix::Error),
    #[error(transparent)]
    Placement(#[from] PlacementError),
    #[error(transparent)]
    MachineFiles(#[from] MachineFilesError),
    #[error(transparent)]
    Helper(#[from] HelperError),
    #[error("mount the container's files for the VMM")]
    Mounts(#[source] io::Error),
    #[error("make the root file system read-only for the VMM")]
    ReadOnlyRoot(#[source] io::Error),
    #[error(transparent)]
    Vmm(#[from] VmmError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Rights(#[from] RightsError),
    #[error(transparent)]
    PidFile(#[from] PidFileError),
}

impl CreateError {
    /// The exit status of a command that fails with this error; `None` if it depends on the command.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Request(error) => error.exit_code(),
            Self::Vmm(error) => error.exit_code(),
            Self::Sandbox(error) => error.exit_code(),
            Self::Interfaces(error) => error.exit_code(),
            _ => None,
        }
    }
}
