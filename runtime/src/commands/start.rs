//! `vmrt start`

use std::time::Duration;

use vmm::control::Request;

use crate::cli::IdArgs;
use crate::commands::error::Error;
use crate::host::hooks;
use crate::sandbox::connection::RequestError;
use crate::sandbox::context::Context;
use crate::sandbox::control_socket::control;
use crate::sandbox::interfaces;
use crate::sandbox::record::Phase;
use crate::sandbox::status::status;
use crate::sandbox::vmm_process::kill;

/// How long the guest may take to execute a program.
pub(crate) const START_DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn run(context: &Context, args: &IdArgs) -> Result<u8, Error> {
    let id = args.id.parse()?;
    let locked = context.store.lock(&id)?;
    let mut record = context.store.record(&id)?;
    check(status(&record, &locked.dir))?;
    let mut client = control(&locked.dir).map_err(RequestError::from)?;
    // Some engines make the interfaces between create and start.
    interfaces::update(&mut client, &locked, &mut record)?;
    let request = Request::Start { container: record.id.clone() };
    client.call(&request, &[], Some(START_DEADLINE)).map_err(RequestError::from)?;
    record.phase = Phase::Running;
    locked.write(&record)?;
    match hooks::run_poststart(record.hook_container()) {
        Ok(()) => Ok(0),
        Err(error) => {
            kill(record.vmm)?;
            Err(error.into())
        }
    }
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
