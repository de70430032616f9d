//! What every command works with.

use std::path::{self, PathBuf};
use std::rc::Rc;

use crate::caller::Caller;
use crate::cli::{CgroupManager, Global};
use crate::config::{Config, ConfigError};
use crate::error::Error;
use crate::log::Log;
use crate::state::Store;
use crate::timeline::Timeline;

/// The parts of the command line and of the machine that do not depend on the command.
pub(crate) struct Context {
    pub(crate) store: Store,
    pub(crate) log: Rc<Log>,
    pub(crate) timeline: Timeline,
    /// What makes the cgroups of containers.
    pub(crate) cgroup_manager: CgroupManager,
    /// Who runs this command.
    pub(crate) caller: Caller,
    /// Whether a cgroup that may not be made is done without.
    pub(crate) spares_cgroups: bool,
    config: Option<PathBuf>,
}

impl Context {
    /// `begin`: when the process began, in nanoseconds of `CLOCK_MONOTONIC`.
    pub(crate) fn new(global: &Global, begin: u64) -> Result<Self, Error> {
        let caller = Caller::find();
        let root = global.root.clone().map_or_else(|| caller.default_root(), Ok)?;
        let root = path::absolute(&root).map_err(|source| Error::Root { path: root.clone(), source })?;
        Ok(Self {
            store: Store::new(root),
            log: Rc::new(Log::new(global.log.as_deref(), global.log_format, global.debug)?),
            timeline: Timeline::new(begin),
            cgroup_manager: if global.systemd_cgroup { CgroupManager::Systemd } else { global.cgroup_manager },
            caller,
            spares_cgroups: caller.spares_cgroups(&global.rootless)?,
            config: global.config.clone(),
        })
    }

    /// Reads the machine's configuration.
    pub(crate) fn config(&self) -> Result<Config, ConfigError> {
        Config::load(self.config.as_deref())
    }
}
