//! `vmrt update-interfaces`, which the helper runs when the VMM's network namespace has changed.

use crate::cli::IdArgs;
use crate::commands::error::Error;
use crate::sandbox::connection::RequestError;
use crate::sandbox::context::Context;
use crate::sandbox::control_socket::control;
use crate::sandbox::interfaces;
use crate::sandbox::record::Phase;

pub(crate) fn run(context: &Context, args: &IdArgs) -> Result<u8, Error> {
    let id = args.id.parse()?;
    let locked = context.store.lock(&id)?;
    let mut record = context.store.record(&id)?;
    if record.phase_now() != Phase::Running {
        return Ok(0);
    }
    let mut client = control(&locked.dir).map_err(RequestError::from)?;
    interfaces::follow(&mut client, &locked, &mut record)?;
    Ok(0)
}
