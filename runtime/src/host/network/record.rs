//! What is recorded of a sandbox's network between commands.

use std::path::PathBuf;

use agent::Interface;
use serde::{Deserialize, Serialize};

/// Part of a container's state.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct NetworkRecord {
    /// The namespace, where it was there before the sandbox and so outlives it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<PathBuf>,
    /// Number of the machine's network devices.
    pub(crate) slots: u8,
    /// The interfaces that are attached to the guest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) interfaces: Vec<Attached>,
    /// The container's `resolv.conf` on the host, as long as that does not send it to the name server of its namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resolv_conf: Option<PathBuf>,
}

/// An interface that is attached to the guest.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Attached {
    /// Its index in the sandbox's namespace.
    pub(crate) index: u32,
    /// Index of its tap.
    pub(crate) tap: u32,
    /// The guest's interface, as it was set up.
    pub(crate) interface: Interface,
}
