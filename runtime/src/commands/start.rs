//! `vmrt start`

use super::error::Error;
use crate::cli::IdArgs;
use crate::sandbox::context::Context;
use crate::sandbox::start::start;

pub(crate) fn run(context: &Context, args: &IdArgs) -> Result<u8, Error> {
    start(&context.store, &args.id.parse()?)?;
    Ok(0)
}
