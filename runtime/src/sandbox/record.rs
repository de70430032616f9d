//! What is recorded of a container between commands.

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

/// How far a container got, as far as commands know; whether its VMM still lives has to be looked up.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    Creating,
    Created,
    Running,
    /// Told by the VMM, never recorded.
    Paused,
    Stopped,
}

impl Phase {
    /// As the runtime specification calls it.
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
    /// The VMM, whose pid is the container's to the caller.
    pub(crate) vmm: HostProcess,
    /// Whether it is in a user namespace of its own.
    #[serde(default)]
    pub(crate) user_namespace: bool,
    /// Boot of the host in which the VMM was started.
    pub(crate) boot_id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    /// RFC 3339.
    pub(crate) created: String,
    #[serde(default)]
    pub(crate) annotations: HashMap<String, String>,
    pub(crate) cgroup: Cgroup,
    /// The unit that the cgroup belongs to, where systemd made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) scope: Option<Scope>,
    /// The size its machine has now.
    pub(crate) machine: Size,
    /// Limits that replaced those of the bundle's specification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resources: Option<LinuxResources>,
    /// Those that later commands run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hooks: Option<Hooks>,
    #[serde(default)]
    pub(crate) network: NetworkRecord,
}

impl Record {
    /// The phase as it is now: stopped without a VMM of this boot, whatever the file says.
    pub(crate) fn phase_now(&self) -> Phase {
        if self.of_this_boot() && self.vmm.is_alive() { self.phase } else { Phase::Stopped }
    }

    /// Whether it has a machine of its own, not another container's.
    pub(crate) fn has_machine(&self) -> bool {
        self.machine != Size::NONE
    }

    /// What its hooks are run with.
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

    /// Whether its pid means anything.
    pub(crate) fn of_this_boot(&self) -> bool {
        boot_id().is_ok_and(|id| id == self.boot_id)
    }
}
