//! Creates a container, or undoes every step if one fails.
//!
//! A request becomes a [`Plan`], which creates nothing. The plan is carried out as a [`Claim`] on the container's id, a [`Machine`] on
//! the host and the [`Container`] in its guest. Each step adds its reversal to the claim's undo stack.

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

/// Creates a container.
///
/// # Errors
/// A step failed. The steps before it are undone.
pub(crate) fn create(context: &mut Context, request: CreateRequest) -> Result<Container, CreateError> {
    let Plan { request, machine, guest } = Plan::of(request, context)?;
    let claim = Claim::of(&request, machine.shared.as_ref(), &context.store)?;
    let (stdio, signals) = machine::open_streams(&request)?;
    context.timeline.reached("bundle checked");
    let mut machine = Machine::start(&request, machine, claim, stdio, context)?;
    context.timeline.reached("VMM spawned");
    machine.run_hooks()?;
    let mut connection = machine.connect(signals)?;
    let interfaces = machine.boot(&mut connection, &request, &context.store, &context.log)?;
    let mut container = Container::set_up(machine, connection, &request, guest, interfaces, &context.log)?;
    context.timeline.reached("container created");
    container.publish(&request)?;
    Ok(container)
}
