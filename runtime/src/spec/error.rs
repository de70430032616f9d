//! Errors of bundles and specifications.

use std::io;
use std::path::PathBuf;

use oci_spec::runtime::LinuxNamespaceType;
use thiserror::Error;

/// Why a bundle cannot be run. Messages that runc has are worded as in runc.
#[derive(Debug, Error)]
pub(crate) enum BundleError {
    #[error("chdir {}", path.display())]
    NoBundle { path: PathBuf, source: io::Error },
    #[error("JSON specification file {} not found", .0.display())]
    NoConfig(PathBuf),
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not a valid specification", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{} is not a valid specification: it is not a JSON object", .0.display())]
    NoObject(PathBuf),
    #[error("ociVersion `{0}` is not supported: vmrt implements 1.x")]
    Version(String),
    #[error("root must be specified")]
    NoRoot,
    #[error("process property must not be empty")]
    NoProcess,
    #[error("Cwd property must not be empty")]
    NoCwd,
    #[error("Cwd must be an absolute path")]
    RelativeCwd,
    #[error("args must not be empty")]
    NoArgs,
    #[error("process.{0} holds a NUL character")]
    Nul(&'static str),
    #[error("invalid environment variable: \"{0}\"")]
    Environment(String),
    #[error("unable to set hostname without a private UTS namespace")]
    HostnameWithoutUts,
    #[error("the host's {0} namespace is refused: a container in its own virtual machine cannot share it")]
    HostNamespace(LinuxNamespaceType),
    #[error("invalid mount {}: {reason}", destination.display())]
    Mount { destination: PathBuf, reason: &'static str },
    #[error("hooks.{point}: {reason}")]
    Hook { point: &'static str, reason: String },
}
