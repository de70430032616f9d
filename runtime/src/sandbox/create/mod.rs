//! Making a container, all or nothing.
//!
//! A request becomes a [`Plan`]: everything is decided and nothing is made. From it come a [`Claim`] on the container's id, a
//! [`Machine`] on the host and, in its guest, the [`Container`]. Whatever is made goes on the claim's undo stack.

mod claim;
mod container;
mod error;
mod machine;
mod network;
mod plan;
mod request;

use self::claim::Claim;
pub(crate) use self::container::{Container, ForegroundContainer};
pub(crate) use self::error::CreateError;
use self::machine::Machine;
use self::plan::Plan;
pub(crate) use self::request::CreateRequest;
use crate::sandbox::context::Context;

/// Makes a container.
///
/// # Errors
/// A step failed. All before it are undone.
pub(crate) fn create(context: &mut Context, request: CreateRequest) -> Result<Container, CreateError> {
    let Plan { request, machine, guest } = Plan::of(request, context)?;
    let claim = Claim::of(&request, machine.shared.as_ref(), &context.store)?;
    let (stdio, signals) = machine::open_streams(&request)?;
    context.timeline.reached("bundle checked");
    let mut machine = Machine::start(&request, machine, claim, stdio, context)?;
    context.timeline.reached("VMM spawned");
    machine.run_hooks()?;
    let mut connection = machine.connect(signals)?;
    let interfaces = machine.boot(&mut connection, &request, &context.store)?;
    let mut container = Container::set_up(machine, connection, &request, guest, interfaces)?;
    context.timeline.reached("container created");
    container.publish(&request)?;
    Ok(container)
}
