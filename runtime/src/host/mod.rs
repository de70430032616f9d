//! The host's side of a sandbox: its process, namespaces, cgroup, network and hooks.

pub(crate) mod caller;
pub(crate) mod cgroup;
pub(crate) mod hooks;
pub(crate) mod jail_layers;
pub(crate) mod mount_trees;
pub(crate) mod mounts;
pub(crate) mod network;
pub(crate) mod network_namespace;
pub(crate) mod oom_notifier;
pub(crate) mod open_fds;
pub(crate) mod process;
pub(crate) mod scm_rights;
pub(crate) mod signals;
pub(crate) mod spawn;
#[cfg(feature = "unjailed-bench")]
pub(crate) mod unjailed;
pub(crate) mod user_namespace;
