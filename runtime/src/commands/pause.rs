//! `vmrt pause` and `vmrt resume`

use std::time::Duration;

use vmm::control::Request;

use crate::base::container_id::ContainerId;
use crate::cli::IdArgs;
use crate::commands::error::Error;
use crate::sandbox::connection::RequestError;
use crate::sandbox::context::Context;
use crate::sandbox::control_socket::control;
use crate::sandbox::record::Phase;
use crate::sandbox::status::status;

/// Time limit for the container's processes to freeze. A process that waits for I/O on a share freezes after it is done.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) fn pause(context: &Context, args: &IdArgs) -> Result<u8, Error> {
    let id: ContainerId = args.id.parse()?;
    let record = context.store.record(&id)?;
    match status(&record, &context.store.dir(&id)) {
        Phase::Created | Phase::Running => {}
        _ => return Err(Error::NotRunning),
    }
    if let Err(error) = freeze(context, &id, true) {
        // A partial pause is undone: the processes that are frozen continue.
        let _ = freeze(context, &id, false);
        return Err(error.into());
    }
    Ok(0)
}

pub(crate) fn resume(context: &Context, args: &IdArgs) -> Result<u8, Error> {
    let id: ContainerId = args.id.parse()?;
    let record = context.store.record(&id)?;
    if status(&record, &context.store.dir(&id)) != Phase::Paused {
        return Err(Error::NotPaused);
    }
    freeze(context, &id, false)?;
    Ok(0)
}

fn freeze(context: &Context, id: &ContainerId, frozen: bool) -> Result<(), RequestError> {
    let mut client = control(&context.store.dir(id))?;
    client.call(&Request::Freeze { container: id.to_string(), frozen }, &[], Some(FREEZE_TIMEOUT))?;
    Ok(())
}
