//! `vmrt run`

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::{FailureKind, ProcessId};
use vmm::control::{Reply, Request};

use super::refusal::refuse_preserve_fds;
use crate::base::container_id::ContainerId;
use crate::base::log::Log;
use crate::cli::{BundleArgs, ListFormat, RunArgs};
use crate::commands::error::Error;
use crate::sandbox::connection::RequestError;
use crate::sandbox::context::Context;
use crate::sandbox::create::{Container, CreateRequest, ForegroundContainer, create};
use crate::sandbox::delete;
use crate::sandbox::error::SandboxError;
use crate::sandbox::foreground::{HostTerminal, wait};
use crate::sandbox::start::start_created;
use crate::sandbox::vmm_process::END_TIMEOUT;
use crate::spec::bundle::{Bundle, CONFIG_FILE};
use crate::spec::error::BundleError;

/// Time limit for a VMM to report its timeline.
const TIMELINE_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) fn run(context: &mut Context, args: RunArgs) -> Result<u8, Error> {
    refuse_preserve_fds(args.bundle.preserve_fds)?;
    let (timeline, keep, detach) = (args.timeline, args.keep, args.detach);
    let request = request(args, &context.log)?;
    let mut container = create(context, request)?;
    if timeline.is_some() {
        request_timeline(context, &mut container)?;
    }
    start_created(&mut container)?;
    context.timeline.reached("started");
    if detach {
        container.commit();
        print_timeline(context, timeline);
        return Ok(0);
    }
    let foreground = container.into_foreground();
    let id = foreground.id.clone();
    let result = wait_for_end(foreground);
    context.timeline.reached("container and VMM ended");
    if !keep {
        delete(context, &id)?;
        context.timeline.reached("deleted");
    }
    print_timeline(context, timeline);
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

/// Returns the directory of the bundle and the container's id. The argument is the id, as in runc, or the directory of a bundle.
fn locate(args: &BundleArgs, argument: &Path) -> Result<(PathBuf, ContainerId), Error> {
    let working_dir = Path::new(".");
    let has_bundle = args.bundle.is_some() || args.config.is_some();
    if !has_bundle && !working_dir.join(CONFIG_FILE).exists() && argument.join(CONFIG_FILE).exists() {
        let dir = argument.canonicalize().map_err(|source| BundleError::NoBundle { path: argument.into(), source })?;
        let id = ContainerId::from_bundle_directory(&dir)?;
        return Ok((dir, id));
    }
    let id = argument.to_string_lossy().parse()?;
    Ok((args.bundle.as_deref().unwrap_or(working_dir).to_owned(), id))
}

/// Waits for the end of the container and then of its VMM. Returns the exit status of the container's program.
fn wait_for_end(mut foreground: ForegroundContainer) -> Result<u8, Error> {
    let process = ProcessId { container: foreground.id.to_string(), exec: None };
    let terminal = foreground.stdio.terminal.as_ref().map_or(HostTerminal::None, HostTerminal::Own);
    match wait(&mut foreground.connection, &process, terminal) {
        Ok(status) => {
            foreground.vmm.wait(END_TIMEOUT);
            Ok(status.code())
        }
        // A shared sandbox may have removed the container before the request. Then its proxy has the exit status.
        Err(error) if error.kind() == Some(FailureKind::NotFound) => {
            let status = foreground.vmm.wait(END_TIMEOUT).and_then(|status| status.code());
            status.and_then(|code| u8::try_from(code).ok()).ok_or_else(|| error.into())
        }
        Err(error) => {
            if error.is_guest_death() {
                foreground.vmm.wait(END_TIMEOUT);
            }
            Err(SandboxError::explain(error, &mut foreground.vmm, &foreground.dir).into())
        }
    }
}

/// Deletes the container. One that another command has deleted meanwhile is no error.
fn delete(context: &Context, id: &ContainerId) -> Result<(), Error> {
    let Ok(locked) = context.store.lock(id) else { return Ok(()) };
    let record = context.store.record(id)?;
    Ok(delete::delete(&record, locked, &context.log)?)
}

fn request_timeline(context: &mut Context, container: &mut Container) -> Result<(), Error> {
    match container.connection.call(&Request::Timeline, &[], "ask for the timeline", TIMELINE_TIMEOUT)? {
        Reply::Timeline(stages) => {
            context.timeline.add(stages);
            Ok(())
        }
        _ => Err(RequestError::UnexpectedReply.into()),
    }
}

fn print_timeline(context: &Context, format: Option<ListFormat>) {
    match format {
        None => {}
        Some(ListFormat::Table) => eprint!("{}", context.timeline.table()),
        Some(ListFormat::Json) => eprintln!("{}", context.timeline.json()),
    }
}
