//! What a sandbox is on the host: a process in namespaces, with a cgroup and a network, and the hooks that run beside it.

pub(crate) mod caller;
pub(crate) mod cgroup;
pub(crate) mod hooks;
pub(crate) mod mounts;
pub(crate) mod network;
pub(crate) mod network_namespace;
pub(crate) mod open_fds;
pub(crate) mod process;
pub(crate) mod scm_rights;
pub(crate) mod signals;
pub(crate) mod user_namespace;
