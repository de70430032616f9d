//! Removing a sandbox's container: its process, its cgroup, its network and its record.

use thiserror::Error;

use super::record::Record;
use super::shared;
use super::store::{Locked, StateError};
use super::vmm_process::{VmmError, kill};
use crate::base::log::Log;
use crate::host::cgroup::CgroupError;
use crate::host::cgroup::systemd::{Scope, SystemdError};
use crate::host::hooks;
use crate::host::network::{self, Namespace, NetworkError};

/// Why something of a container is left.
#[derive(Debug, Error)]
pub(crate) enum DeleteError {
    #[error(transparent)]
    Vmm(#[from] VmmError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Systemd(#[from] SystemdError),
    #[error("a cgroup is left")]
    Cgroup(#[source] CgroupError),
}

/// Ends what is left of a container's sandbox and removes all that is known of it. Its poststop hooks run last.
///
/// # Errors
/// Something could not be removed. Unless that is the process or the container's directory, all else is.
pub(crate) fn delete(record: &Record, locked: Locked, log: &Log) -> Result<(), DeleteError> {
    if record.of_this_boot() {
        kill(record.vmm)?;
        if !record.has_machine() {
            shared::await_end(record, &locked.dir);
        }
    }
    let stopped = record.scope.as_ref().filter(|_| record.of_this_boot()).map_or(Ok(()), Scope::stop);
    let mut left = record.cgroup.remove().into_iter();
    let disconnected = disconnect_network(record);
    locked.remove()?;
    hooks::run_poststop(record.hook_container(), log);
    disconnected?;
    stopped?;
    left.next().map_or(Ok(()), |error| Err(DeleteError::Cgroup(error)))
}

/// Removes the redirections of interfaces that outlive the sandbox. A namespace that is gone has none.
fn disconnect_network(record: &Record) -> Result<(), NetworkError> {
    let Some(path) = record.network.namespace.as_ref().filter(|_| record.network.slots > 0) else {
        return Ok(());
    };
    match Namespace::at(path) {
        Ok(namespace) if record.of_this_boot() => network::detach_all(&namespace, record.vmm),
        _ => Ok(()),
    }
}
