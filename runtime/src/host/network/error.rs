//! Errors of a sandbox's network.

use std::io;

use thiserror::Error;

/// The reason why a sandbox has no network.
#[derive(Debug, Error)]
pub(crate) enum NetworkError {
    #[error("open the network namespace of process {pid}")]
    Namespace { pid: i32, source: io::Error },
    #[error("start a thread for the sandbox's network namespace")]
    Thread(#[source] io::Error),
    #[error("enter the sandbox's network namespace")]
    Enter(#[source] io::Error),
    #[error("{step}")]
    Netlink { step: &'static str, source: io::Error },
    #[error("{step} {name}")]
    Interface { step: &'static str, name: String, source: io::Error },
    #[error("network interface {name}: {reason}")]
    Refused { name: String, reason: String },
}
