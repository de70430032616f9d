//! The specification of a container, `config.json`: reading it, checking it, and separating the guest's settings from the host's.
//! Nothing here changes the host.

pub(crate) mod apparmor;
pub(crate) mod block_io;
pub(crate) mod bundle;
pub(crate) mod capabilities;
pub(crate) mod check;
pub(crate) mod device_numbers;
pub(crate) mod devices;
pub(crate) mod error;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
pub(crate) mod guest;
pub(crate) mod hooks;
pub(crate) mod id_mappings;
pub(crate) mod limits;
pub(crate) mod mounts;
pub(crate) mod namespaces;
pub(crate) mod parse;
pub(crate) mod resources;
pub(crate) mod seccomp;
pub(crate) mod sizing;

/// Version of the runtime specification that the output of `state` and the input of hooks follow.
pub(crate) const OCI_VERSION: &str = "1.0.2";

/// The specification that `runc spec` writes: a shell in a terminal.
pub(crate) const STARTER: &str = include_str!("starter.json");
