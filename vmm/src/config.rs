//! The configuration of a sandbox, which the runtime sends in the first request.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

/// The smallest guest memory that can boot and run a container, in MiB.
pub const MIN_MEMORY_MIB: u64 = 64;

/// Most vCPUs of a guest. The guest kernel is built for as many (`CONFIG_NR_CPUS`).
pub const MAX_VCPUS: u8 = 64;

/// The configuration of a sandbox. Its values are not checked.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxConfig {
    /// Guest memory at boot in MiB, at least [`MIN_MEMORY_MIB`].
    pub memory_mib: u64,
    /// Number of vCPUs at boot, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// Most vCPUs at run time. The guest's kernel allocates data for as many. A value less than `vcpus` means `vcpus`.
    #[serde(default)]
    pub max_vcpus: u8,
    /// Whether the VMM has a cgroup of its own, in which engines look for OOM kills.
    #[serde(default)]
    pub has_cgroup: bool,
    /// Number of network devices, at most [`crate::net::MAX_SLOTS`]. An interface can be attached to each at run time.
    #[serde(default)]
    pub network_slots: u8,
    /// Id of the main container. When its first process has ended, the VMM exits with that process's status.
    pub main_container: String,
    /// Whether the descriptors end with one of a console log: a file to which all messages of the guest's kernel are appended.
    #[serde(default)]
    pub has_console_log: bool,
    /// What a template has to do with the sandbox.
    #[serde(default)]
    pub template: TemplateUse,
    /// How the VMM confines itself.
    pub jail: JailConfig,
}

/// What a sandbox has to do with a template.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TemplateUse {
    /// Nothing: the machine boots.
    #[default]
    None,
    /// The machine starts from the template in the last descriptor. If it cannot be used, the machine boots.
    Start,
    /// The machine is saved as a template into the empty file of the last descriptor when its agent is ready, and ends.
    Make,
}

impl SandboxConfig {
    /// Number of descriptors that are passed with the configuration, see [`SandboxFiles`].
    #[must_use]
    pub fn descriptors(&self) -> usize {
        let has_template = self.template != TemplateUse::None;
        SandboxFiles::REQUIRED + usize::from(self.has_console_log) + usize::from(has_template)
    }
}

/// How a process confines itself. What the host lacks is not asked for.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct JailConfig {
    /// Whether the process was started in a mount namespace of its own.
    pub own_mounts: bool,
    /// The user and group id that it assumes, which no other process has; `None` if it can have no other id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
}

/// The open files of a sandbox, in the order in which their descriptors are passed with its configuration. The VMM is told no
/// path and opens no file of the host itself.
#[derive(Debug)]
pub struct SandboxFiles {
    /// The KVM device.
    pub kvm: OwnedFd,
    /// The control socket: a Unix stream socket that is bound. The VMM listens on it.
    pub control_socket: OwnedFd,
    /// The connection for [`crate::helper::Task`]s.
    pub helper: OwnedFd,
    /// The connection for [`crate::helper::MakeNode`].
    pub node_maker: OwnedFd,
    /// The kernel: an uncompressed ELF file with a PVH entry.
    pub kernel: OwnedFd,
    /// The initramfs: an uncompressed cpio archive with the agent as `/init`.
    pub initramfs: OwnedFd,
    /// The console log, open for appending, if the configuration has one.
    pub console_log: Option<OwnedFd>,
    /// The template, if the configuration has one.
    pub template: Option<OwnedFd>,
}

impl SandboxFiles {
    /// Number of descriptors without those of the console log and the template.
    const REQUIRED: usize = 6;

    /// The files of the descriptors that were passed with `config`; `None` if there are too few.
    #[must_use]
    pub fn of(descriptors: Vec<OwnedFd>, config: &SandboxConfig) -> Option<Self> {
        let mut rest = descriptors.into_iter();
        Some(Self {
            kvm: rest.next()?,
            control_socket: rest.next()?,
            helper: rest.next()?,
            node_maker: rest.next()?,
            kernel: rest.next()?,
            initramfs: rest.next()?,
            console_log: if config.has_console_log { Some(rest.next()?) } else { None },
            template: if config.template == TemplateUse::None { None } else { Some(rest.next()?) },
        })
    }
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
