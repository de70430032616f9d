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
use crate::sandbox::store::{Found, Locked, StateError};
use crate::sandbox::vmm_process::{END_PATIENCE, kill};

pub(crate) fn run(context: &Context, args: &DeleteArgs) -> Result<u8, Error> {
    let id: ContainerId = args.id.parse()?;
    match delete(context, &id, args.force) {
        Err(Error::State(StateError::NotFound)) if args.force => Ok(0),
        result => result.map(|()| 0),
    }
}

fn delete(context: &Context, id: &ContainerId, force: bool) -> Result<(), Error> {
    let locked = if force {
        // Before the lock is waited for: a command that holds it may itself wait for this VMM.
        kill_recorded(context, id)?;
        context.store.lock_remains(id)?
    } else {
        context.store.lock(id)?
    };
    match context.store.find(id) {
        // What a killed `create` left; only force removes it, since to anybody else there is no such container.
        Err(StateError::NotFound) if force => return Ok(locked.remove()?),
        found => match found? {
            Found::Damaged => kill_listener(&locked)?,
            Found::Record(record) => check(&record, &locked.dir, force)?,
        },
    }
    let record = context.store.record(id)?;
    Ok(delete::delete(&record, locked, &context.log)?)
}

/// A container that is being created does not count: the `create` must have been killed, since its lock is ours.
fn check(record: &Record, dir: &Path, force: bool) -> Result<(), Error> {
    if force {
        return Ok(());
    }
    match status(record, dir) {
        phase @ (Phase::Running | Phase::Paused) => {
            Err(Error::NotStopped { id: record.id.clone(), status: phase.name() })
        }
        Phase::Stopped => {
            // The program has ended, and the VMM may still be handing its output over.
            record.vmm.wait(END_PATIENCE);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn kill_recorded(context: &Context, id: &ContainerId) -> Result<(), Error> {
    match context.store.find(id) {
        Ok(Found::Record(record)) if record.of_this_boot() => Ok(kill(record.vmm)?),
        _ => Ok(()),
    }
}

/// A container whose state is lost may have a VMM all the same: the process that listens on its control socket.
fn kill_listener(locked: &Locked) -> Result<(), Error> {
    Ok(listener(&locked.dir).map_or(Ok(()), kill)?)
}
