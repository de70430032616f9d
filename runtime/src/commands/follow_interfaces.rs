//! `vmrt follow-interfaces`: what a VMM calls when its network namespace has changed.

use crate::cli::IdArgs;
use crate::connection::RequestError;
use crate::context::Context;
use crate::error::Error;
use crate::interfaces;
use crate::sandbox::control;
use crate::state::Phase;

/// Name of the command.
pub(crate) const NAME: &str = "follow-interfaces";

pub(crate) fn run(context: &Context, args: &IdArgs) -> Result<u8, Error> {
    let id = args.id.parse()?;
    let locked = context.store.lock(&id)?;
    let mut record = context.store.record(&id)?;
    if record.phase_now() != Phase::Running {
        return Ok(0);
    }
    let mut client = control(&locked.dir).map_err(RequestError::from)?;
    interfaces::take_gone(&mut client, &locked, &mut record)?;
    interfaces::update(&mut client, &locked, &mut record)?;
    Ok(0)
}
