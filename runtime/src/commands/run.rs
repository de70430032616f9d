//! `vmrt run`

use std::path::{Path, PathBuf};

use agent::{FailureKind, ProcessId};
use vmm::control::{Reply, Request};

use super::check_bundle_args;
use super::delete::finish;
use super::start::START_DEADLINE;
use crate::bundle::{Bundle, BundleError, CONFIG_FILE};
use crate::cli::{BundleArgs, RunArgs};
use crate::connection::RequestError;
use crate::context::Context;
use crate::create::{Attached, Created, END_PATIENCE, Order, create, explain, is_guest_death};
use crate::error::Error;
use crate::foreground::{self, Screen};
use crate::hooks;
use crate::id::ContainerId;
use crate::log::Log;
use crate::state::Phase;

pub(crate) fn run(context: &mut Context, args: RunArgs) -> Result<u8, Error> {
    check_bundle_args(&args.bundle)?;
    let (timeline, keep, detach) = (args.timeline, args.keep, args.detach);
    let order = order(args, &context.log)?;
    let mut created = create(context, order)?;
    if timeline {
        ask_timeline(context, &mut created)?;
    }
    start(&mut created)?;
    hooks::run_poststart(&created.record)?;
    context.timeline.reached("started");
    if detach {
        created.keep();
        show(context, timeline);
        return Ok(0);
    }
    let attached = created.attach();
    let id = attached.id.clone();
    let result = attend(attached);
    context.timeline.reached("container and VMM ended");
    if !keep {
        delete(context, &id)?;
        context.timeline.reached("deleted");
    }
    show(context, timeline);
    result
}

fn order(args: RunArgs, log: &Log) -> Result<Order, Error> {
    let (dir, id) = locate(&args.bundle, Path::new(&args.id))?;
    let mut bundle = Bundle::load(&dir, args.bundle.config.as_deref(), log)?;
    if let Some(process) = bundle.spec.process_mut().as_mut().filter(|_| args.tty) {
        process.set_terminal(Some(true));
    }
    let BundleArgs { pid_file, console_socket, pidfd_socket, .. } = args.bundle;
    Ok(Order { id, bundle, pid_file, console_socket, pidfd_socket, detach: args.detach })
}

/// Which bundle is meant, and the container's id: runc's form, or a bundle in the id's place.
fn locate(args: &BundleArgs, argument: &Path) -> Result<(PathBuf, ContainerId), Error> {
    let here = Path::new(".");
    let named = args.bundle.is_some() || args.config.is_some();
    if !named && !here.join(CONFIG_FILE).exists() && argument.join(CONFIG_FILE).exists() {
        let dir = argument.canonicalize().map_err(|source| BundleError::NoBundle { path: argument.into(), source })?;
        let id = ContainerId::of_bundle(&dir)?;
        return Ok((dir, id));
    }
    let id = argument.to_string_lossy().parse()?;
    Ok((args.bundle.as_deref().unwrap_or(here).to_owned(), id))
}

fn start(created: &mut Created) -> Result<(), Error> {
    let request = Request::Start { container: created.id.to_string() };
    let result = created.connection.call(&request, &[], "start the container's program", START_DEADLINE);
    result.map_err(|error| explain(error.about(&created.program), &mut created.vmm, &created.locked.dir))?;
    created.record.phase = Phase::Running;
    Ok(created.locked.write(&created.record)?)
}

/// Waits for the container's end, and then for that of its VMM.
fn attend(mut attached: Attached) -> Result<u8, Error> {
    let process = ProcessId { container: attached.id.to_string(), exec: None };
    let screen = attached.stdio.terminal.as_ref().map_or(Screen::None, Screen::Own);
    match foreground::wait(&mut attached.connection, &process, screen) {
        Ok(status) => {
            attached.vmm.wait(END_PATIENCE);
            Ok(status.code())
        }
        // In another's machine it may be gone before it is asked for; the process that stands in for it has its status.
        Err(error) if error.kind() == Some(FailureKind::NotFound) => {
            let status = attached.vmm.wait(END_PATIENCE).and_then(|status| status.code());
            status.and_then(|code| u8::try_from(code).ok()).ok_or_else(|| error.into())
        }
        Err(error) => {
            if is_guest_death(&error) {
                attached.vmm.wait(END_PATIENCE);
            }
            Err(explain(error, &mut attached.vmm, &attached.dir))
        }
    }
}

/// Removes the container; one that another command deleted meanwhile is as well removed.
fn delete(context: &Context, id: &ContainerId) -> Result<(), Error> {
    let Ok(locked) = context.store.lock(id) else { return Ok(()) };
    let record = context.store.record(id)?;
    finish(&record, locked, &context.log)
}

fn ask_timeline(context: &mut Context, created: &mut Created) -> Result<(), Error> {
    match created.connection.call(&Request::Timeline, &[], "ask for the timeline", START_DEADLINE)? {
        Reply::Timeline(stages) => {
            context.timeline.add(stages);
            Ok(())
        }
        _ => Err(RequestError::Confused.into()),
    }
}

fn show(context: &Context, wanted: bool) {
    if wanted {
        eprint!("{}", context.timeline.table());
    }
}
