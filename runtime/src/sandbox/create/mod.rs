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

use std::path::PathBuf;

use self::claim::Claim;
pub(crate) use self::container::{Attached, Container};
pub(crate) use self::error::CreateError;
use self::machine::Machine;
use self::plan::Plan;
use crate::base::container_id::ContainerId;
use crate::sandbox::context::Context;
use crate::spec::bundle::Bundle;

/// What to make.
#[derive(Debug)]
pub(crate) struct CreateRequest {
    pub(crate) id: ContainerId,
    pub(crate) bundle: Bundle,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) console_socket: Option<PathBuf>,
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// The caller does not stay with the container.
    pub(crate) detach: bool,
}

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
