//! `vmrt run`

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::{FailureKind, ProcessId};
use vmm::control::{Reply, Request};

use super::refusal::refuse_preserve_fds;
use crate::base::container_id::ContainerId;
use crate::base::log::Log;
use crate::cli::{BundleArgs, RunArgs};
use crate::commands::error::Error;
use crate::sandbox::connection::RequestError;
use crate::sandbox::context::Context;
use crate::sandbox::create::{Container, CreateRequest, ForegroundContainer, create};
use crate::sandbox::delete;
use crate::sandbox::error::SandboxError;
use crate::sandbox::foreground::{Screen, wait};
use crate::sandbox::start::start_created;
use crate::sandbox::vmm_process::END_PATIENCE;
use crate::spec::bundle::{Bundle, CONFIG_FILE};
use crate::spec::error::BundleError;

/// How long a VMM may take to report its timeline.
const TIMELINE_DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn run(context: &mut Context, args: RunArgs) -> Result<u8, Error> {
    refuse_preserve_fds(args.bundle.preserve_fds)?;
    let (timeline, keep, detach) = (args.timeline, args.keep, args.detach);
    let request = request(args, &context.log)?;
    let mut container = create(context, request)?;
    if timeline {
        ask_timeline(context, &mut container)?;
    }
    start_created(&mut container)?;
    context.timeline.reached("started");
    if detach {
        container.keep();
        show(context, timeline);
        return Ok(0);
    }
    let foreground = container.into_foreground();
    let id = foreground.id.clone();
    let result = attend(foreground);
    context.timeline.reached("container and VMM ended");
    if !keep {
        delete(context, &id)?;
        context.timeline.reached("deleted");
    }
    show(context, timeline);
    result
}

fn request(args: RunArgs, log: &Log) -> Result<CreateRequest, Error> {
    let (dir, id) = locate(&args.bundle, Path::new(&args.id))?;
    let mut bundle = Bundle::load(&dir, args.bundle.config.as_deref(), log)?;
    if let Some(process) = bundle.spec.process_mut().as_mut().filter(|_| args.tty) {
        process.set_terminal(Some(true));
    }
    let BundleArgs { pid_file, console_socket, pidfd_socket, .. } = args.bundle;
    Ok(CreateRequest { id, bundle, pid_file, console_socket, pidfd_socket, detach: args.detach })
}

/// Which bundle is meant, and the container's id: runc's form, or a bundle in the id's place.
fn locate(args: &BundleArgs, argument: &Path) -> Result<(PathBuf, ContainerId), Error> {
    let here = Path::new(".");
    let named = args.bundle.is_some() || args.config.is_some();
    if !named && !here.join(CONFIG_FILE).exists() && argument.join(CONFIG_FILE).exists() {
        let dir = argument.canonicalize().map_err(|source| BundleError::NoBundle { path: argument.into(), source })?;
        let id = ContainerId::from_bundle_directory(&dir)?;
        return Ok((dir, id));
    }
    let id = argument.to_string_lossy().parse()?;
    Ok((args.bundle.as_deref().unwrap_or(here).to_owned(), id))
}

/// Waits for the container's end, and then for that of its VMM.
fn attend(mut foreground: ForegroundContainer) -> Result<u8, Error> {
    let process = ProcessId { container: foreground.id.to_string(), exec: None };
    let screen = foreground.stdio.terminal.as_ref().map_or(Screen::None, Screen::Own);
    match wait(&mut foreground.connection, &process, screen) {
        Ok(status) => {
            foreground.vmm.wait(END_PATIENCE);
            Ok(status.code())
        }
        // A shared sandbox may have removed it before the request; its proxy has the status.
        Err(error) if error.kind() == Some(FailureKind::NotFound) => {
            let status = foreground.vmm.wait(END_PATIENCE).and_then(|status| status.code());
            status.and_then(|code| u8::try_from(code).ok()).ok_or_else(|| error.into())
        }
        Err(error) => {
            if error.is_guest_death() {
                foreground.vmm.wait(END_PATIENCE);
            }
            Err(SandboxError::explain(error, &mut foreground.vmm, &foreground.dir).into())
        }
    }
}

/// Removes the container; one that another command deleted meanwhile is as well removed.
fn delete(context: &Context, id: &ContainerId) -> Result<(), Error> {
    let Ok(locked) = context.store.lock(id) else { return Ok(()) };
    let record = context.store.record(id)?;
    Ok(delete::delete(&record, locked, &context.log)?)
}

fn ask_timeline(context: &mut Context, container: &mut Container) -> Result<(), Error> {
    match container.connection.call(&Request::Timeline, &[], "ask for the timeline", TIMELINE_DEADLINE)? {
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
