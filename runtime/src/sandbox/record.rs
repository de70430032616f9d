//! The record of a container, for later commands.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::{Hooks, LinuxResources};
use serde::{Deserialize, Serialize};

use crate::host::cgroup::Cgroup;
use crate::host::cgroup::systemd::Scope;
use crate::host::hooks;
use crate::host::network::NetworkRecord;
use crate::host::process::{HostProcess, boot_id};
use crate::spec::sizing::Size;

/// The phase of a container's life cycle. A recorded phase holds only as long as the VMM runs.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    Creating,
    Created,
    Running,
    /// Reported by the VMM, never recorded.
    Paused,
    Stopped,
}

impl Phase {
    /// The name in the runtime specification.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// The contents of `state.json`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) phase: Phase,
    /// The VMM, or the container's proxy in a shared sandbox. Its pid is reported as the container's.
    pub(crate) vmm: HostProcess,
    /// Whether the VMM is in a user namespace of its own.
    #[serde(default)]
    pub(crate) user_namespace: bool,
    /// Id of the host's boot in which the VMM was started.
    pub(crate) boot_id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    /// Time of creation, in RFC 3339 format.
    pub(crate) created: String,
    #[serde(default)]
    pub(crate) annotations: HashMap<String, String>,
    pub(crate) cgroup: Cgroup,
    /// The unit of the cgroup, if systemd created it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) scope: Option<Scope>,
    /// The current size of the container's machine; [`Size::NONE`] in a shared sandbox.
    pub(crate) machine: Size,
    /// Limits of `vmrt update`, which replace those of the bundle's specification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resources: Option<LinuxResources>,
    /// The hooks that later commands run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hooks: Option<Hooks>,
    #[serde(default)]
    pub(crate) network: NetworkRecord,
}

impl Record {
    /// The recorded phase, or `Stopped` if the VMM does not run in this boot.
    pub(crate) fn phase_now(&self) -> Phase {
        if self.is_of_this_boot() && self.vmm.is_alive() { self.phase } else { Phase::Stopped }
    }

    /// Whether a VMM was started for the container in the current boot.
    pub(crate) fn has_vmm_of_this_boot(&self) -> bool {
        self.vmm != HostProcess::NONE && self.is_of_this_boot()
    }

    /// Whether the container has a machine of its own, and is not in a shared sandbox.
    pub(crate) fn has_machine(&self) -> bool {
        self.machine != Size::NONE
    }

    /// The container as its hooks see it.
    pub(crate) fn hook_container(&self) -> hooks::Container<'_> {
        hooks::Container {
            hooks: self.hooks.as_ref(),
            id: &self.id,
            process: self.vmm,
            user_namespace: self.user_namespace,
            bundle: &self.bundle,
            rootfs: &self.rootfs,
            annotations: &self.annotations,
        }
    }

    /// Whether the VMM was started in the current boot. Otherwise its pid is meaningless. If the boot is unknown, because this process
    /// has no descriptor left for example, it counts as the same: a running VMM must not be taken for one that has ended.
    pub(crate) fn is_of_this_boot(&self) -> bool {
        boot_id().map_or(true, |id| id == self.boot_id)
    }
}
