//! `vmrt delete`

use std::path::Path;

use super::error::Error;
use crate::base::container_id::ContainerId;
use crate::cli::DeleteArgs;
use crate::sandbox::context::Context;
use crate::sandbox::control_socket::listener;
use crate::sandbox::delete;
use crate::sandbox::record::{Phase, Record};
use crate::sandbox::status::status;
use crate::sandbox::store::{LockedDir, StateError, StoredState};
use crate::sandbox::vmm_process::{END_TIMEOUT, kill};

pub(crate) fn run(context: &Context, args: &DeleteArgs) -> Result<u8, Error> {
    let id: ContainerId = args.id.parse()?;
    match delete(context, &id, args.force) {
        Err(Error::State(StateError::NotFound)) if args.force => Ok(0),
        result => result.map(|()| 0),
    }
}

fn delete(context: &Context, id: &ContainerId, force: bool) -> Result<(), Error> {
    let locked = if force {
        // The VMM is killed before the lock is acquired: the command that holds the lock may wait for the VMM.
        kill_recorded(context, id)?;
        context.store.lock_remains(id)?
    } else {
        context.store.lock(id)?
    };
    match context.store.find(id) {
        // The directory of a killed `create` is removed only with `--force`. Otherwise the container does not exist.
        Err(StateError::NotFound) if force => return Ok(locked.remove()?),
        found => match found? {
            StoredState::Damaged => kill_listener(&locked)?,
            StoredState::Record(record) => check(&record, &locked.dir, force)?,
        },
    }
    let record = context.store.record(id)?;
    Ok(delete::delete(&record, locked, &context.log)?)
}

/// Checks that a container may be deleted. One that is being created may: this command holds its lock, so the `create` was killed.
fn check(record: &Record, dir: &Path, force: bool) -> Result<(), Error> {
    if force {
        return Ok(());
    }
    match status(record, dir) {
        phase @ (Phase::Running | Phase::Paused) => {
            Err(Error::NotStopped { id: record.id.clone(), status: phase.name() })
        }
        Phase::Stopped => {
            // The program has ended, but the VMM may still be writing its output.
            record.vmm.wait(END_TIMEOUT);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn kill_recorded(context: &Context, id: &ContainerId) -> Result<(), Error> {
    match context.store.find(id) {
        Ok(StoredState::Record(record)) if record.is_of_this_boot() => Ok(kill(record.vmm)?),
        _ => Ok(()),
    }
}

/// Kills the process that listens on the control socket: a container with a damaged state may still have a VMM.
fn kill_listener(locked: &LockedDir) -> Result<(), Error> {
    Ok(listener(&locked.dir).map_or(Ok(()), kill)?)
}
