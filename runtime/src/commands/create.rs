//! `vmrt create`

use std::path::Path;

use super::refusal::refuse_preserve_fds;
use crate::cli::CreateArgs;
use crate::commands::error::Error;
use crate::sandbox::context::Context;
use crate::sandbox::create::{CreateRequest, create};
use crate::spec::bundle::Bundle;

pub(crate) fn run(context: &mut Context, args: CreateArgs) -> Result<u8, Error> {
    refuse_preserve_fds(args.bundle.preserve_fds)?;
    let dir = args.bundle.bundle.as_deref().unwrap_or(Path::new("."));
    let request = CreateRequest {
        id: args.id.parse()?,
        bundle: Bundle::load(dir, args.bundle.config.as_deref(), &context.log)?,
        pid_file: args.bundle.pid_file,
        console_socket: args.bundle.console_socket,
        pidfd_socket: args.bundle.pidfd_socket,
        detach: true,
    };
    create(context, request)?.commit();
    Ok(0)
}
