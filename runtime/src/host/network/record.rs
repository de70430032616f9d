//! The record of a sandbox's network, for later commands.

use std::path::PathBuf;

use agent::Interface;
use serde::{Deserialize, Serialize};

/// The network part of a container's record.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct NetworkRecord {
    /// Path of the namespace if it existed before the sandbox, and so outlives it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<PathBuf>,
    /// Number of the machine's network devices.
    pub(crate) slots: u8,
    /// Whether the guest may send only with the addresses of its interfaces.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) anti_spoofing: bool,
    /// The interfaces that are attached to the guest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) interfaces: Vec<InterfaceRecord>,
    /// The container's `resolv.conf` on the host, as long as that does not name the name server of the namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resolv_conf: Option<PathBuf>,
}

/// The record of an interface that is attached to the guest.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct InterfaceRecord {
    /// Index of the interface in the sandbox's namespace.
    pub(crate) index: u32,
    /// Index of its tap.
    pub(crate) tap: u32,
    /// The settings of the guest's interface.
    pub(crate) interface: Interface,
}
