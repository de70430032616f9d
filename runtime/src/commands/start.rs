//! `vmrt start`

use std::time::Duration;

use vmm::control::{Client, Request};

use super::state::status;
use crate::cli::IdArgs;
use crate::connection::RequestError;
use crate::context::Context;
use crate::error::Error;
use crate::hooks::{self, Turn};
use crate::network::{self, Namespace};
use crate::sandbox::control;
use crate::state::{Locked, Phase, Record};

/// How long the guest may take to execute a program.
pub(crate) const START_DEADLINE: Duration = Duration::from_secs(10);

pub(crate) fn run(context: &Context, args: &IdArgs) -> Result<u8, Error> {
    let id = args.id.parse()?;
    let locked = context.store.lock(&id)?;
    let mut record = context.store.record(&id)?;
    check(status(&record, &locked.dir))?;
    let mut client = control(&locked.dir).map_err(RequestError::from)?;
    connect_new(&mut client, &locked, &mut record)?;
    let request = Request::Start { container: record.id.clone() };
    client.call(&request, &[], Some(START_DEADLINE)).map_err(RequestError::from)?;
    record.phase = Phase::Running;
    locked.write(&record)?;
    hooks::run_all(Turn::Poststart, &record, &context.log);
    Ok(0)
}

/// Leads interfaces into the guest that came to its network namespace since it was created, as some engines have it.
fn connect_new(client: &mut Client, locked: &Locked, record: &mut Record) -> Result<(), Error> {
    if record.network.interfaces.len() >= usize::from(record.network.slots) {
        return Ok(());
    }
    let connected = network::connect(&Namespace::of(record.vmm)?, record.vmm, &mut record.network)?;
    if !connected.is_empty() {
        locked.write(record)?;
    }
    for one in connected {
        let (container, interface) = (record.id.clone(), Box::new(one.interface.clone()));
        let request = Request::AddInterface { container, interface };
        client.call(&request, &[one.tap()], Some(START_DEADLINE)).map_err(RequestError::from)?;
    }
    Ok(())
}

fn check(phase: Phase) -> Result<(), Error> {
    match phase {
        Phase::Created => Ok(()),
        Phase::Creating => Err(Error::BeingCreated),
        Phase::Running => Err(Error::AlreadyRunning),
        Phase::Paused => Err(Error::StartPaused),
        Phase::Stopped => Err(Error::HasStopped),
    }
}
