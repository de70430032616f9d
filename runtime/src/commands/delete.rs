//! `vmrt delete`

use std::path::Path;

use super::state::status;
use crate::cli::DeleteArgs;
use crate::context::Context;
use crate::create::END_PATIENCE;
use crate::error::Error;
use crate::hooks;
use crate::host_process::HostProcess;
use crate::id::ContainerId;
use crate::joined;
use crate::log::Log;
use crate::network::{self, Namespace};
use crate::sandbox::{SandboxError, listener};
use crate::state::{Found, Locked, Phase, Record, StateError};
use crate::systemd::Scope;

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
    finish(&record, locked, &context.log)
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

/// Ends what is left of a container's sandbox and removes all that is known of it.
pub(crate) fn finish(record: &Record, locked: Locked, log: &Log) -> Result<(), Error> {
    if record.of_this_boot() {
        kill(record.vmm)?;
        if !record.has_machine() {
            joined::await_end(record, &locked.dir);
        }
    }
    let stopped = record.scope.as_ref().filter(|_| record.of_this_boot()).map_or(Ok(()), Scope::stop);
    let mut left = record.cgroup.remove().into_iter();
    let disconnected = leave_network(record);
    locked.remove()?;
    hooks::run_poststop(record, log);
    disconnected?;
    stopped?;
    left.next().map_or(Ok(()), |error| Err(Error::Leftover(error)))
}

/// Takes the redirections off interfaces that outlive the sandbox. A namespace that is gone has none.
fn leave_network(record: &Record) -> Result<(), Error> {
    let Some(path) = record.network.namespace.as_ref().filter(|_| record.network.slots > 0) else {
        return Ok(());
    };
    match Namespace::at(path) {
        Ok(namespace) if record.of_this_boot() => Ok(network::disconnect(&namespace, record.vmm)?),
        _ => Ok(()),
    }
}

fn kill_recorded(context: &Context, id: &ContainerId) -> Result<(), Error> {
    match context.store.find(id) {
        Ok(Found::Record(record)) if record.of_this_boot() => kill(record.vmm),
        _ => Ok(()),
    }
}

/// A container whose state is lost may have a VMM all the same: the process that listens on its control socket.
fn kill_listener(locked: &Locked) -> Result<(), Error> {
    listener(&locked.dir).map_or(Ok(()), kill)
}

pub(super) fn kill(vmm: HostProcess) -> Result<(), Error> {
    if vmm.kill_and_wait(END_PATIENCE) { Ok(()) } else { Err(SandboxError::Immortal(vmm.pid).into()) }
}
