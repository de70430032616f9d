//! `vmrt sandbox-helper` and `vmrt oom-notifier`: processes outside the VMM's jail.

use crate::cli::IdArgs;
use crate::commands::error::Error;
use crate::host::oom_notifier;
use crate::sandbox::context::Context;
use crate::sandbox::helper;

/// Serves the VMM of a sandbox until it ends.
pub(crate) fn serve(context: &Context, args: &IdArgs) -> Result<u8, Error> {
    helper::serve(context.store.root().to_owned(), &args.id)?;
    Ok(0)
}

/// Has the host count an OOM kill. Returns only if it did not.
pub(crate) fn notify_of_oom_kill() -> Result<u8, Error> {
    oom_notifier::run()?;
    Ok(1)
}
