//! Makes the context of a command from the global options.

use std::io;
use std::path::{self, PathBuf};
use std::rc::Rc;

use thiserror::Error;

use super::arguments::Global;
use crate::base::log::{Log, LogError};
use crate::base::timeline::Timeline;
use crate::host::caller::{Caller, CallerError};
use crate::host::cgroup::placement::{CgroupManager, CgroupPolicy};
use crate::sandbox::context::Context;
use crate::sandbox::store::Store;

/// The reason why no command can run.
#[derive(Debug, Error)]
pub(crate) enum ContextError {
    #[error(transparent)]
    Caller(#[from] CallerError),
    #[error("root directory {}", path.display())]
    Root { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Makes the context. `begin` is the start time of the process, in nanoseconds of `CLOCK_MONOTONIC`.
///
/// # Errors
/// The root directory or the log file cannot be used, or `--rootless` is invalid.
pub(crate) fn context(global: &Global, begin: u64) -> Result<Context, ContextError> {
    let caller = Caller::find();
    let root = global.root.clone().map_or_else(|| caller.default_root(), Ok)?;
    let root = path::absolute(&root).map_err(|source| ContextError::Root { path: root.clone(), source })?;
    Ok(Context {
        store: Store::new(root),
        log: Rc::new(Log::new(global.log.as_deref(), global.log_format, global.debug)?),
        timeline: Timeline::new(begin),
        caller,
        cgroup_policy: CgroupPolicy {
            manager: if global.systemd_cgroup { CgroupManager::Systemd } else { global.cgroup_manager },
            optional: caller.may_omit_cgroup(&global.rootless)?,
        },
        config_file: global.config.clone(),
    })
}
