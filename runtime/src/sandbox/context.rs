//! The context of an operation on sandboxes.

use std::path::PathBuf;
use std::rc::Rc;

use crate::base::config::{Config, ConfigError};
use crate::base::log::Log;
use crate::base::timeline::Timeline;
use crate::host::caller::Caller;
use crate::host::cgroup::placement::CgroupPolicy;
use crate::sandbox::store::Store;

/// The global options and the state of the host, which are the same for every operation.
pub(crate) struct Context {
    pub(crate) store: Store,
    pub(crate) log: Rc<Log>,
    pub(crate) timeline: Timeline,
    /// The user that runs this process.
    pub(crate) caller: Caller,
    pub(crate) cgroup_policy: CgroupPolicy,
    /// The configuration file; `None` for the default one.
    pub(crate) config_file: Option<PathBuf>,
}

impl Context {
    /// Reads the configuration file.
    pub(crate) fn config(&self) -> Result<Config, ConfigError> {
        Config::load(self.config_file.as_deref(), self.caller == Caller::Root)
    }
}
