//! Why a sandbox did not do what it was asked for.

use std::path::Path;
use std::time::Duration;

use thiserror::Error;

use super::connection::RequestError;
use super::vmm_process::{Vmm, VmmError};

/// A request failed, or its VMM went away instead of answering.
#[derive(Debug, Error)]
pub(crate) enum SandboxError {
    #[error(transparent)]
    Request(RequestError),
    #[error(transparent)]
    Vmm(VmmError),
}

impl SandboxError {
    /// Explains why a request failed. A VMM that went away has the reason in its log, in the container's directory `dir`.
    pub(crate) fn explain(error: RequestError, vmm: &mut Vmm, dir: &Path) -> Self {
        const PATIENCE: Duration = Duration::from_secs(1);
        if error.is_end() { Self::Vmm(VmmError::Ended(vmm.ending(dir, PATIENCE))) } else { Self::Request(error) }
    }

    /// The exit status of a command that fails with it, where that does not depend on the command.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Request(error) => error.exit_code(),
            Self::Vmm(error) => error.exit_code(),
        }
    }
}
