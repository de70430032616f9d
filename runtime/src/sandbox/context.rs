//! What every operation on sandboxes works with.

use std::path::PathBuf;
use std::rc::Rc;

use crate::base::config::{Config, ConfigError};
use crate::base::log::Log;
use crate::base::timeline::Timeline;
use crate::host::caller::Caller;
use crate::host::cgroup::placement::CgroupPolicy;
use crate::sandbox::store::Store;

/// The parts of the machine and of the caller's options that do not depend on the operation.
pub(crate) struct Context {
    pub(crate) store: Store,
    pub(crate) log: Rc<Log>,
    pub(crate) timeline: Timeline,
    /// Who runs this process.
    pub(crate) caller: Caller,
    pub(crate) cgroup_policy: CgroupPolicy,
    /// The configuration file, where it is not the default one.
    pub(crate) config_file: Option<PathBuf>,
}

impl Context {
    /// Reads the machine's configuration.
    pub(crate) fn config(&self) -> Result<Config, ConfigError> {
        Config::load(self.config_file.as_deref())
    }
}
