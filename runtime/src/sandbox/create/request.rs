//! The request for a new container.

use std::path::PathBuf;

use crate::base::container_id::ContainerId;
use crate::spec::bundle::Bundle;

/// The parameters of a new container.
#[derive(Debug)]
pub(crate) struct CreateRequest {
    pub(crate) id: ContainerId,
    pub(crate) bundle: Bundle,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) console_socket: Option<PathBuf>,
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// Whether the caller ends before the container.
    pub(crate) detach: bool,
}
