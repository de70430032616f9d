//! The error of a request to a sandbox, with the end of its VMM as a possible cause.

use std::path::Path;
use std::time::Duration;

use thiserror::Error;

use super::connection::RequestError;
use super::vmm_process::{Vmm, VmmError};

/// A request failed, or the VMM ended before it answered.
#[derive(Debug, Error)]
pub(crate) enum SandboxError {
    #[error(transparent)]
    Request(RequestError),
    #[error(transparent)]
    Vmm(VmmError),
}

impl SandboxError {
    /// Finds the cause of a failed request. If the VMM ended, the cause is in its log in the container's directory `dir`.
    pub(crate) fn explain(error: RequestError, vmm: &mut Vmm, dir: &Path) -> Self {
        const TIMEOUT: Duration = Duration::from_secs(1);
        if error.is_disconnect() { Self::Vmm(VmmError::Ended(vmm.ending(dir, TIMEOUT))) } else { Self::Request(error) }
    }

    /// The exit status of a command that fails with this error; `None` if it depends on the command.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Request(error) => error.exit_code(),
            Self::Vmm(error) => error.exit_code(),
        }
    }
}
