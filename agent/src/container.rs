//! The specifications of containers and of further processes in them.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Process, Spec};
use serde::{Deserialize, Serialize};

use crate::network::AttachedInterface;
use crate::process::{ProcessId, Stdio};

/// A compiled system call filter.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SeccompFilter {
    /// `SECCOMP_FILTER_FLAG_*` of the kernel.
    pub flags: u32,
    /// Classic BPF instructions. Each number is one `struct sock_filter` of the kernel: from the most significant bit,
    /// 16 bits of `code`, 8 of `jt`, 8 of `jf` and 32 of `k`.
    pub program: Vec<u64>,
}

/// Kind of a special file.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SpecialKind {
    /// A character device.
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A stream socket. Connections to it are forwarded to the socket of the host.
    Socket,
}

/// A file of the guest that represents a file of the host which cannot be shared. It is the source of a bind mount.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SpecialFile {
    /// Its name, unique in the container: [`SpecialFile::path`] is the mount's source.
    pub name: String,
    /// Its kind.
    pub kind: SpecialKind,
    /// Its mode.
    pub mode: u32,
    /// User id of its owner.
    pub uid: u32,
    /// Group id of its owner.
    pub gid: u32,
}

impl SpecialFile {
    /// Its path in the guest.
    #[must_use]
    pub fn path(&self, container: &str) -> PathBuf {
        Path::new(crate::SPECIAL_DIR).join(container).join(&self.name)
    }
}

/// A special file and, for a socket, the host port that its connections are forwarded to.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AttachedFile {
    /// The file.
    pub file: SpecialFile,
    /// The port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
}

/// The configuration of a container, which is the same in a client's request and in the VMM's.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ContainerConfig {
    /// Its id, unique in the sandbox and a single path component.
    pub id: String,
    /// The OCI specification. `root.path` and the sources of bind mounts are paths in the guest.
    pub spec: Spec,
    /// Path of its bundle on the host, for the state that hooks read.
    pub bundle: PathBuf,
    /// The filter of all its processes. It replaces the specification's `linux.seccomp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<SeccompFilter>,
}

/// Everything that is needed to make a container.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CreateContainer {
    /// Its configuration.
    pub config: ContainerConfig,
    /// Streams of its first process.
    pub stdio: Stdio,
    /// Interfaces of its network namespace, without the loopback interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<AttachedInterface>,
    /// Sources of its bind mounts that are not in a share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub special_files: Vec<AttachedFile>,
    /// The host port for the name server at [`crate::NAME_SERVER`], if the container uses that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_server: Option<u32>,
}

/// A further process in a container.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Exec {
    /// Its id; `exec` is always present.
    pub process: ProcessId,
    /// The specification of the process.
    pub spec: Process,
    /// Its streams.
    pub stdio: Stdio,
    /// An existing cgroup below the container's, in which the process is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
}
