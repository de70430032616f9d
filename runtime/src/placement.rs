//! The cgroup on the host that a new VMM is put into, or that it has none: a caller who is not root may make none in most places.

use std::path::{Path, PathBuf};

use crate::caller::{Caller, CallerError};
use crate::cgroup::{Cgroup, CgroupError};
use crate::cli::CgroupManager;
use crate::context::Context;
use crate::error::{Error, chain};
use crate::id::ContainerId;
use crate::limits::Limits;
use crate::log::Log;
use crate::state::Record;
use crate::systemd::Scope;
use crate::undo::Undo;

/// Where a VMM is to be, and its limits there.
pub(crate) struct Placement {
    manager: CgroupManager,
    path: PathBuf,
    limits: Limits,
    scope: Option<Scope>,
    /// Whether it may be left out where the caller may not make it.
    optional: bool,
}

impl Placement {
    /// Plans it by `linux.cgroupsPath` and the command line. What it will hold is written down before there is any of it, so that
    /// it is found should this process be killed.
    pub(crate) fn plan(
        context: &Context,
        id: &ContainerId,
        asked: Option<&Path>,
        limits: Limits,
    ) -> Result<(Self, Cgroup), Error> {
        let manager = context.cgroup_manager;
        if manager == CgroupManager::Systemd && context.caller != Caller::Root {
            return Err(CallerError::Systemd.into());
        }
        let scope = (manager == CgroupManager::Systemd).then(|| Scope::named(asked, id)).transpose()?;
        let disabled = manager == CgroupManager::Disabled;
        let optional = disabled || context.spares_cgroups && asked.is_none() && scope.is_none();
        let path = match (&scope, asked) {
            (Some(scope), _) => scope.cgroup(),
            (None, Some(path)) => path.to_owned(),
            (None, None) if optional => Cgroup::path_beside_own(id),
            (None, None) => Cgroup::default_path(id),
        };
        let cgroup = match Cgroup::plan(&path) {
            _ if disabled => Cgroup::default(),
            Err(CgroupError::NotMounted) if optional => Cgroup::default(),
            planned => planned?.claim().map_err(Error::CgroupTaken)?,
        };
        Ok((Self { manager, path, limits, scope, optional }, cgroup))
    }

    pub(crate) fn scope(&self) -> Option<&Scope> {
        self.scope.as_ref()
    }

    /// Makes the cgroup, or has systemd make it, and puts the VMM there, which does nothing yet. Where that may not be and was not
    /// asked for, the VMM stays in its caller's cgroup, and the container's limits hold in the guest alone.
    pub(crate) fn enter(&self, record: &mut Record, log: &Log) -> Result<(), Error> {
        match self.put(record) {
            Err(Error::Cgroup(source)) if self.optional && source.is_refusal() => {
                drop(record.cgroup.remove());
                if let Some(field) = self.limits.of_the_host_alone() {
                    return Err(Error::CgroupNeeded { field, source });
                }
                log.debug(&format!("the VMM has no cgroup of its own: {}", chain(&source)));
                record.cgroup = Cgroup::default();
                Ok(())
            }
            result => result,
        }
    }

    /// What may take all its CPU time away is left for [`Self::limit_cpu`]: the guest would not boot in any reasonable time.
    fn put(&self, record: &Record) -> Result<(), Error> {
        if self.manager == CgroupManager::Disabled {
            return Err(CgroupError::Disabled.into());
        }
        let limits = Limits { cpu_quota: None, cpu_idle: None, ..self.limits.clone() };
        if let Some(scope) = &self.scope {
            scope.start(record.vmm.pid, &limits)?;
        }
        Cgroup::create(&self.path, &limits)?;
        Ok(record.cgroup.add(record.vmm.pid)?)
    }

    /// Limits its CPU time, too, when the container is made and nothing of its own has run.
    pub(crate) fn limit_cpu(&self, record: &Record) -> Result<(), Error> {
        if self.limits.cpu_quota.is_none() && self.limits.cpu_idle.is_none() {
            return Ok(());
        }
        if let Some(scope) = &self.scope {
            scope.set(&self.limits)?;
        }
        Ok(record.cgroup.update(&self.limits)?)
    }
}

/// Remembers how to take back what [`Placement::enter`] makes.
pub(crate) fn push_removal(undo: &mut Undo, record: &Record) {
    let (cgroup, scope) = (record.cgroup.clone(), record.scope.clone());
    undo.push(move || {
        let _ = scope.map(|scope| scope.stop());
        drop(cgroup.remove());
    });
}
