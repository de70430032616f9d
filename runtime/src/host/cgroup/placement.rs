//! The cgroup on the host that a new VMM is put into. It may have none: a caller without root may not make one in most places.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use thiserror::Error;

use super::systemd::{Scope, SystemdError};
use super::{Cgroup, CgroupError};
use crate::base::container_id::ContainerId;
use crate::base::error_chain::chain;
use crate::base::log::Log;
use crate::base::undo::UndoStack;
use crate::host::caller::{Caller, CallerError};
use crate::spec::limits::Limits;

/// Why a VMM cannot be put into a cgroup, or be limited there.
#[derive(Debug, Error)]
pub(crate) enum PlacementError {
    #[error("limit the VMM's cgroup")]
    Limit(#[from] CgroupError),
    #[error(transparent)]
    Claim(CgroupError),
    #[error("linux.resources.{field} holds on the host, and needs a cgroup there")]
    CgroupNeeded { field: &'static str, source: CgroupError },
    #[error(transparent)]
    Caller(#[from] CallerError),
    #[error(transparent)]
    Systemd(#[from] SystemdError),
}

// The comments of the variants are the help texts of `--cgroup-manager`.
/// What makes containers' cgroups on the host.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum CgroupManager {
    /// This command itself.
    Cgroupfs,
    /// The same as --systemd-cgroup.
    Systemd,
    /// Nothing: the container's limits hold in the guest alone.
    Disabled,
}

/// How cgroups are made, whatever the container.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CgroupPolicy {
    pub(crate) manager: CgroupManager,
    /// Whether a container does without a cgroup that the caller may not make.
    pub(crate) optional: bool,
}

/// Where a VMM is to be, and its limits there.
#[derive(Debug)]
pub(crate) struct Placement {
    manager: CgroupManager,
    path: PathBuf,
    limits: Limits,
    scope: Option<Scope>,
    /// Whether the VMM does without the cgroup where the caller may not make it.
    optional: bool,
}

impl Placement {
    /// Plans the cgroup by `requested`, which is `linux.cgroupsPath`, and the policy. Returns the planned cgroup as well: it is
    /// recorded before any of it exists, so that it is found should this process be killed.
    ///
    /// # Errors
    /// The path is invalid, the cgroup is in use, or the caller may not have systemd make it.
    pub(crate) fn plan(
        policy: CgroupPolicy,
        caller: Caller,
        id: &ContainerId,
        requested: Option<&Path>,
        limits: Limits,
    ) -> Result<(Self, Cgroup), PlacementError> {
        let CgroupPolicy { manager, optional } = policy;
        if manager == CgroupManager::Systemd && caller != Caller::Root {
            return Err(CallerError::Systemd.into());
        }
        let scope = (manager == CgroupManager::Systemd).then(|| Scope::named(requested, id)).transpose()?;
        let disabled = manager == CgroupManager::Disabled;
        let optional = disabled || optional && requested.is_none() && scope.is_none();
        let path = match (&scope, requested) {
            (Some(scope), _) => scope.cgroup(),
            (None, Some(path)) => path.to_owned(),
            (None, None) if optional => Cgroup::path_beside_own(id),
            (None, None) => Cgroup::default_path(id),
        };
        let cgroup = match Cgroup::plan(&path) {
            _ if disabled => Cgroup::default(),
            Err(CgroupError::NotMounted) if optional => Cgroup::default(),
            planned => planned?.claim().map_err(PlacementError::Claim)?,
        };
        Ok((Self { manager, path, limits, scope, optional }, cgroup))
    }

    /// The unit of the cgroup, where systemd makes it.
    pub(crate) fn scope(&self) -> Option<&Scope> {
        self.scope.as_ref()
    }

    /// Makes the planned cgroup, or has systemd make it, and puts the process `pid` there. Returns the cgroup it is in then: none
    /// where the caller may not make an optional one, so that the container's limits hold in the guest alone.
    pub(crate) fn enter(&self, planned: Cgroup, pid: i32, log: &Log) -> Result<Cgroup, PlacementError> {
        match self.create(&planned, pid) {
            Err(PlacementError::Limit(source)) if self.optional && source.is_refusal() => {
                drop(planned.remove());
                if let Some(field) = self.limits.first_host_only_limit() {
                    return Err(PlacementError::CgroupNeeded { field, source });
                }
                log.debug(&format!("the VMM has no cgroup of its own: {}", chain(&source)));
                Ok(Cgroup::default())
            }
            result => result.map(|()| planned),
        }
    }

    /// Leaves the limits of CPU time to [`Self::limit_cpu`]: with little of it the guest would not boot in reasonable time.
    fn create(&self, planned: &Cgroup, pid: i32) -> Result<(), PlacementError> {
        if self.manager == CgroupManager::Disabled {
            return Err(CgroupError::Disabled.into());
        }
        let limits = Limits { cpu_quota: None, cpu_idle: None, ..self.limits.clone() };
        if let Some(scope) = &self.scope {
            scope.start(pid, &limits)?;
        }
        Cgroup::create(&self.path, &limits)?;
        Ok(planned.add(pid)?)
    }

    /// Limits the CPU time, too, once the container is made and nothing of its own has run. `cgroup` is what [`Self::enter`]
    /// returned.
    pub(crate) fn limit_cpu(&self, cgroup: &Cgroup) -> Result<(), PlacementError> {
        if self.limits.cpu_quota.is_none() && self.limits.cpu_idle.is_none() {
            return Ok(());
        }
        if let Some(scope) = &self.scope {
            scope.set(&self.limits)?;
        }
        Ok(cgroup.update(&self.limits)?)
    }
}

/// Sets other limits for a VMM in its cgroup, and in its scope where systemd made that.
pub(crate) fn update(cgroup: &Cgroup, scope: Option<&Scope>, limits: &Limits) -> Result<(), PlacementError> {
    if let Some(scope) = scope {
        scope.set(limits)?;
    }
    match limits.first_host_only_limit().filter(|_| cgroup.is_none()) {
        Some(field) => Err(PlacementError::CgroupNeeded { field, source: CgroupError::Spared }),
        None => Ok(cgroup.update(limits)?),
    }
}

/// Has `undo` remove what [`Placement::enter`] makes.
pub(crate) fn push_removal(undo: &mut UndoStack, cgroup: Cgroup, scope: Option<Scope>) {
    undo.push(move || {
        let _ = scope.map(|scope| scope.stop());
        drop(cgroup.remove());
    });
}
