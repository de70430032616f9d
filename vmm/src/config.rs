//! The configuration of a sandbox, which the runtime sends in the first request.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The smallest guest memory that can boot and run a container, in MiB.
pub const MIN_MEMORY_MIB: u64 = 64;

/// Most vCPUs of a guest. The guest kernel is built for as many (`CONFIG_NR_CPUS`).
pub const MAX_VCPUS: u8 = 64;

/// The configuration of a sandbox. Its values are not checked, and its files are not open.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxConfig {
    /// Path of the kernel: an uncompressed ELF file with a PVH entry.
    pub kernel: PathBuf,
    /// Path of the initramfs: an uncompressed cpio archive with the agent as `/init`.
    pub initramfs: PathBuf,
    /// Guest memory at boot in MiB, at least [`MIN_MEMORY_MIB`].
    pub memory_mib: u64,
    /// Number of vCPUs at boot, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// Most vCPUs at run time. The guest's kernel allocates data for as many. A value less than `vcpus` means `vcpus`.
    #[serde(default)]
    pub max_vcpus: u8,
    /// Path of the control socket, which the VMM creates. Its directory exists, belongs to the caller and has mode 0700.
    pub control_socket: PathBuf,
    /// File to which all messages of the guest's kernel are appended. The VMM creates it if it does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console_log: Option<PathBuf>,
    /// Whether the VMM has a cgroup of its own, in which engines look for OOM kills.
    #[serde(default)]
    pub has_cgroup: bool,
    /// Number of network devices, at most [`crate::net::MAX_SLOTS`]. An interface can be attached to each at run time.
    #[serde(default)]
    pub network_slots: u8,
    /// The program and its arguments that the VMM runs when interfaces of its network namespace have changed while the container
    /// runs. Empty if interfaces are not monitored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interface_change_command: Vec<OsString>,
    /// Id of the main container. When its first process has ended, the VMM exits with that process's status.
    pub main_container: String,
}

/// How a share is served.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct ShareOptions {
    /// The guest cannot change anything in the share.
    pub read_only: bool,
    /// The share's root is in the host's own mount tree, so mounts that the host makes below it appear in the share.
    /// (Other roots are detached copies of mounts.) On such mounts, the server keeps open only what the guest has open,
    /// so that the host can unmount them.
    pub follows_host: bool,
}
