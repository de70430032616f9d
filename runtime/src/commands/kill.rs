//! `vmrt kill`

use std::time::Duration;

use agent::{FailureKind, ProcessId};
use nix::libc::SIGKILL;
use vmm::control::Request;

use crate::cli::KillArgs;
use crate::connection::RequestError;
use crate::context::Context;
use crate::create::END_PATIENCE;
use crate::error::Error;
use crate::id::ContainerId;
use crate::sandbox::{SandboxError, control};
use crate::signals;
use crate::state::{Phase, Record};

/// How long a guest may take to hand a signal over before it counts as frozen.
const SIGNAL_DEADLINE: Duration = Duration::from_secs(3);

pub(crate) fn run(context: &Context, args: &KillArgs) -> Result<u8, Error> {
    let id: ContainerId = args.id.parse()?;
    let record = context.store.record(&id)?;
    let signal = signals::parse(&args.signal)?;
    match record.phase_now() {
        // runc has nothing to signal then, and says so only of one process.
        Phase::Stopped if args.all => return Ok(0),
        Phase::Stopped => return Err(Error::NotRunning),
        _ => {}
    }
    match send(context, &id, signal, args.all) {
        Ok(()) => Ok(0),
        Err(RequestError::Failure(failure)) if is_over(failure.kind) => Err(Error::NotRunning),
        Err(error) if signal == SIGKILL => {
            context.log.warn(&format!("the guest does not take the signal, its VMM is killed: {error}"));
            kill_vmm(&record)
        }
        Err(error) => Err(error.into()),
    }
}

fn is_over(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::NotFound | FailureKind::WrongState)
}

fn send(context: &Context, id: &ContainerId, signal: i32, all: bool) -> Result<(), RequestError> {
    let process = ProcessId { container: id.to_string(), exec: None };
    let mut client = control(&context.store.dir(id))?;
    client.call(&Request::Signal { process, signal, all }, &[], Some(SIGNAL_DEADLINE))?;
    Ok(())
}

fn kill_vmm(record: &Record) -> Result<u8, Error> {
    if record.vmm.kill_and_wait(END_PATIENCE) { Ok(0) } else { Err(SandboxError::Immortal(record.vmm.pid).into()) }
}
