//! `vmrt create`

use std::path::Path;

use super::check_bundle_args;
use crate::bundle::Bundle;
use crate::cli::CreateArgs;
use crate::context::Context;
use crate::create::{Order, create};
use crate::error::Error;

pub(crate) fn run(context: &mut Context, args: CreateArgs) -> Result<u8, Error> {
    check_bundle_args(&args.bundle)?;
    let dir = args.bundle.bundle.as_deref().unwrap_or(Path::new("."));
    let order = Order {
        id: args.id.parse()?,
        bundle: Bundle::load(dir, args.bundle.config.as_deref(), &context.log)?,
        pid_file: args.bundle.pid_file,
        console_socket: args.bundle.console_socket,
        pidfd_socket: args.bundle.pidfd_socket,
        detach: true,
    };
    create(context, order)?.keep();
    Ok(0)
}
