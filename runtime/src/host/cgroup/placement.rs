//! Puts a new VMM into a cgroup on the host. A VMM may run without one, since a caller without root may not create cgroups in most
//! places.

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

/// The reason why a VMM cannot be put into a cgroup or limited there.
#[derive(Debug, Error)]
pub(crate) enum PlacementError {
    #[error("limit the VMM's cgroup")]
    Limit(#[from] CgroupError),
    #[error(transparent)]
    InUse(CgroupError),
    #[error("linux.resources.{field} holds on the host, and needs a cgroup there")]
    CgroupNeeded { field: &'static str, source: CgroupError },
    #[error(transparent)]
    Caller(#[from] CallerError),
    #[error(transparent)]
    Systemd(#[from] SystemdError),
}

// The comments of the variants are the help texts of `--cgroup-manager`.
/// The manager that creates containers' cgroups on the host.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum CgroupManager {
    /// vmrt itself.
    Cgroupfs,
    /// systemd, as with --systemd-cgroup.
    Systemd,
    /// no cgroup on the host: the container's limits apply in the guest only.
    Disabled,
}

/// The settings for cgroups that are the same for every container.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CgroupPolicy {
    pub(crate) manager: CgroupManager,
    /// Whether a container runs without a cgroup if the caller may not create one.
    pub(crate) optional: bool,
}

/// The planned cgroup of a VMM, and its limits.
#[derive(Debug)]
pub(crate) struct Placement {
    manager: CgroupManager,
    path: PathBuf,
    limits: Limits,
    scope: Option<Scope>,
    /// Whether the VMM runs without the cgroup if the caller may not create it.
    optional: bool,
}

impl Placement {
    /// Plans the cgroup from the policy and from `requested`, which is `linux.cgroupsPath`. Also returns the planned cgroup: the
    /// caller records it before it is created, so that `delete` finds it if this process is killed.
    ///
    /// # Errors
    /// The path is invalid, the cgroup is in use, or the caller may not use systemd.
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
        let scope = (manager == CgroupManager::Systemd).then(|| Scope::parse(requested, id)).transpose()?;
        let disabled = manager == CgroupManager::Disabled;
        let optional = disabled || optional && requested.is_none() && scope.is_none();
        let path = match (&scope, requested) {
            (Some(scope), _) => scope.cgroup(),
            (None, Some(path)) => path.to_owned(),
            (None, None) if optional => Cgroup::sibling_path(id),
            (None, None) => Cgroup::default_path(id),
        };
        let cgroup = match Cgroup::plan(&path) {
            _ if disabled => Cgroup::default(),
            Err(CgroupError::NotMounted) if optional => Cgroup::default(),
            planned => planned?.check_unused().map_err(PlacementError::InUse)?,
        };
        Ok((Self { manager, path, limits, scope, optional }, cgroup))
    }

    /// The systemd unit of the cgroup, if systemd creates it.
    pub(crate) fn scope(&self) -> Option<&Scope> {
        self.scope.as_ref()
    }

    /// Creates the planned cgroup, itself or through systemd, and moves the process `pid` into it. Returns the cgroup of the
    /// process. It is empty if the caller may not create an optional cgroup; the container's limits then apply in the guest only.
    ///
    /// # Errors
    /// The cgroup cannot be created, or it is missing and a limit can only be set on the host.
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

    /// Creates the cgroup without its CPU time limits, which [`Self::limit_cpu`] sets: a low limit would slow the boot down.
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

    /// Sets the CPU time limits, once the container is created and before its program runs. `cgroup` is what [`Self::enter`]
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

/// Sets new limits for a VMM in its cgroup, and in its scope if systemd created it.
pub(crate) fn update(cgroup: &Cgroup, scope: Option<&Scope>, limits: &Limits) -> Result<(), PlacementError> {
    if let Some(scope) = scope {
        scope.set(limits)?;
    }
    match limits.first_host_only_limit().filter(|_| cgroup.is_none()) {
        Some(field) => Err(PlacementError::CgroupNeeded { field, source: CgroupError::NotCreated }),
        None => Ok(cgroup.update(limits)?),
    }
}

/// Adds the removal of what [`Placement::enter`] creates to `undo`.
pub(crate) fn push_removal(undo: &mut UndoStack, cgroup: Cgroup, scope: Option<Scope>) {
    undo.push(move || {
        let _ = scope.map(|scope| scope.stop());
        drop(cgroup.remove());
    });
}
