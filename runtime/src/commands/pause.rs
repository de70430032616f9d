//! `vmrt pause` and `vmrt resume`

use crate::cli::IdArgs;
use crate::commands::error::Error;
use crate::sandbox::context::Context;
use crate::sandbox::pause;

pub(crate) fn pause(context: &Context, args: &IdArgs) -> Result<u8, Error> {
    pause::pause(&context.store, &args.id.parse()?)?;
    Ok(0)
}

pub(crate) fn resume(context: &Context, args: &IdArgs) -> Result<u8, Error> {
    pause::resume(&context.store, &args.id.parse()?)?;
    Ok(0)
}
