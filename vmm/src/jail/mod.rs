//! The jail of the VMM's process. A guest that has taken the VMM over gains only what the jail leaves.
//!
//! The runtime starts the process in namespaces of its own. [`enter`] adds the rest before the first guest instruction: an
//! empty root directory, an id that belongs to this sandbox, and no capability but those of the file server. [`seccomp`] limits
//! the system calls of each thread. `docs/security.md` describes all layers.

mod credentials;
#[cfg(test)]
mod ending_tests;
pub mod faults;
mod last_line;
mod root;
pub mod seccomp;
#[cfg(feature = "takeover")]
pub mod takeover;
#[cfg(feature = "unjailed-bench")]
pub mod unjailed;

use std::io;

use thiserror::Error;

use crate::config::JailConfig;

pub use credentials::{assume_files_owner, drop_capabilities};

/// A step of the jail that failed.
#[derive(Debug, Error)]
#[error("cannot {step}")]
pub struct JailError {
    /// What the step does.
    pub step: &'static str,
    /// The cause.
    #[source]
    pub source: io::Error,
}

impl JailError {
    /// Returns a function that makes the error of `step` from its cause.
    fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self { step, source: source.into() }
    }
}

/// Confines the process. The calling thread is the only one of the process, and keeps the file server's capabilities, which
/// threads that it starts inherit, until it calls [`drop_capabilities`].
///
/// A host that lacks a part of the root's change gets a warning, and all other layers.
///
/// # Errors
/// The kernel refuses to take privileges away.
pub fn enter(config: &JailConfig) -> Result<(), JailError> {
    #[cfg(feature = "unjailed-bench")]
    if unjailed::is_chosen() {
        return Ok(());
    }
    if config.own_mounts
        && let Err(error) = root::change()
    {
        tracing::warn!("the VMM keeps the host's root directory: {}", crate::chain(&error));
    }
    credentials::assume(config.id)?;
    faults::arm().map_err(JailError::at("handle faults"))?;
    seccomp::arm().map_err(JailError::at("handle forbidden system calls"))
}
