//! Removes a container: its process on the host, its cgroup, its network and its record.

use thiserror::Error;

use super::record::Record;
use super::shared;
use super::store::{LockedDir, StateError};
use super::vmm_process::{VmmError, kill};
use crate::base::log::Log;
use crate::host::cgroup::CgroupError;
use crate::host::cgroup::systemd::{Scope, SystemdError};
use crate::host::hooks;
use crate::host::network::{self, NetworkError, OpenNamespace};

/// The reason why a part of a container is left.
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
    #[error("remove the container's cgroup")]
    Cgroup(#[source] CgroupError),
}

/// Kills the container's process if it still runs, and removes everything that belongs to the container. Its poststop hooks run last.
///
/// # Errors
/// A part could not be removed. If it is the process or the container's directory, the parts after it are left; otherwise all other
/// parts are removed.
pub(crate) fn delete(record: &Record, locked: LockedDir, log: &Log) -> Result<(), DeleteError> {
    if record.is_of_this_boot() {
        kill(record.vmm)?;
        if !record.has_machine() {
            shared::wait_for_removal(record, &locked.dir);
        }
    }
    let stopped = record.scope.as_ref().filter(|_| record.is_of_this_boot()).map_or(Ok(()), Scope::stop);
    let left = record.cgroup.remove();
    let disconnected = disconnect_network(record);
    locked.remove()?;
    hooks::run_poststop(record.hook_container(), log);
    disconnected?;
    stopped?;
    left.into_iter().next().map_or(Ok(()), |error| Err(DeleteError::Cgroup(error)))
}

/// Removes the redirections of interfaces in a namespace that outlives the sandbox. A namespace that does not exist any more has none.
fn disconnect_network(record: &Record) -> Result<(), NetworkError> {
    let Some(path) = record.network.namespace.as_ref().filter(|_| record.network.slots > 0) else {
        return Ok(());
    };
    match OpenNamespace::open(path) {
        Ok(namespace) if record.is_of_this_boot() => network::detach_all(&namespace, record.vmm),
        _ => Ok(()),
    }
}
