//! What a sandbox's machine is made of, as the runtime asks for it.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The least guest memory that boots and leaves room for a container, in MiB.
pub const MIN_MEMORY_MIB: u64 = 64;

/// The most vCPUs a guest can have.
pub const MAX_VCPUS: u8 = 64;

/// A sandbox, as asked for. Nothing in it has been opened or checked.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxConfig {
    /// Uncompressed ELF kernel with a PVH entry.
    pub kernel: PathBuf,
    /// Uncompressed cpio archive that holds the agent as `/init`.
    pub initramfs: PathBuf,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Most vCPUs it may be given while it runs. The guest keeps track of as many; less than `vcpus` is as good as `vcpus`.
    #[serde(default)]
    pub vcpus_most: u8,
    /// Where to bind the control socket. Its directory exists, is owned by the caller and has mode 0700.
    pub control_socket: PathBuf,
    /// File that gets what the guest's kernel prints, every message of it; created or appended to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console_log: Option<PathBuf>,
    /// Whether the VMM is in a cgroup of its own, where engines look for deaths for want of memory.
    #[serde(default)]
    pub has_cgroup: bool,
    /// Network devices, each a slot that an interface can be attached to while the guest runs; at most
    /// [`crate::net::MAX_SLOTS`].
    #[serde(default)]
    pub network_slots: u8,
    /// What to run, in the VMM's own network namespace, when interfaces have come to it or gone while the container runs: a
    /// program and its arguments. Empty where nobody is to follow them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub follow_interfaces: Vec<OsString>,
    /// The container whose first process decides the sandbox's end: the VMM exits when it did, with its status.
    pub main_container: String,
}
