//! What is remembered of a sandbox's network between commands.

use std::path::PathBuf;

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
    /// Indexes of the interfaces that lead to the guest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) interfaces: Vec<u32>,
}
