//! `vmrt kill`

use std::time::Duration;

use agent::{FailureKind, ProcessId};
use nix::libc::SIGKILL;
use vmm::control::Request;

use crate::base::container_id::ContainerId;
use crate::cli::KillArgs;
use crate::commands::error::Error;
use crate::host::signals;
use crate::sandbox::connection::RequestError;
use crate::sandbox::context::Context;
use crate::sandbox::control_socket::control;
use crate::sandbox::record::Phase;
use crate::sandbox::status::CLOSED_VMM_END_TIMEOUT;
use crate::sandbox::vmm_process::kill;

/// Time limit for a guest to deliver a signal. A guest that takes longer counts as hung.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(3);

/// Time that `kill` waits for the end of a container that was sent `SIGKILL`.
const KILLED_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) fn run(context: &Context, args: &KillArgs) -> Result<u8, Error> {
    let id: ContainerId = args.id.parse()?;
    let record = context.store.record(&id)?;
    let signal = signals::parse(&args.signal)?;
    if record.phase_now() == Phase::Stopped {
        return on_stopped(args.all);
    }
    match send(context, &id, signal, args.all) {
        Ok(()) => Ok(0),
        Err(RequestError::Failure(failure)) if is_stopped(failure.kind) => on_stopped(args.all),
        Err(error) if error.is_disconnect() && record.vmm.wait(CLOSED_VMM_END_TIMEOUT) => on_stopped(args.all),
        Err(error) if signal == SIGKILL => {
            context.log.warn(&format!("the guest does not deliver the signal, its VMM is killed: {error}"));
            kill(record.vmm)?;
            Ok(0)
        }
        Err(error) => Err(error.into()),
    }
}

/// Returns the result for a stopped container. As in runc, that is an error unless all processes were to be signaled.
fn on_stopped(all: bool) -> Result<u8, Error> {
    if all { Ok(0) } else { Err(Error::NotRunning) }
}

/// Whether a failure means that the container has stopped.
fn is_stopped(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::NotFound | FailureKind::WrongState)
}

fn send(context: &Context, id: &ContainerId, signal: i32, all: bool) -> Result<(), RequestError> {
    let process = ProcessId { container: id.to_string(), exec: None };
    let mut client = control(&context.store.dir(id))?;
    client.call(&Request::Signal { process: process.clone(), signal, all }, &[], Some(SIGNAL_TIMEOUT))?;
    if signal == SIGKILL {
        // After `kill` the next command is to find the container stopped. The signal was delivered, so a failure is ignored.
        let _ = client.call(&Request::Wait { process }, &[], Some(KILLED_TIMEOUT));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::{fs, thread};

    use agent::{ExitStatus, frame};
    use clap::Parser;
    use vmm::control::{Answer, Call, Reply};

    use super::*;
    use crate::cli::{Arguments, Command, context};
    use crate::host::process::{HostProcess, boot_id};
    use crate::sandbox::control_socket::CONTROL_SOCKET;

    /// Runs `kill` with this signal and returns the requests that the VMM receives.
    fn requests_of_kill(signal: &str) -> Vec<Request> {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("web");
        fs::create_dir(&dir).unwrap();
        let own = HostProcess::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        let record = serde_json::json!({
            "id": "web", "phase": "running", "vmm": own, "bootId": boot_id().unwrap(), "bundle": "/b", "rootfs": "/b",
            "created": "", "cgroup": [], "machine": {"memoryMib": 1, "vcpus": 1},
        });
        fs::write(dir.join("state.json"), record.to_string()).unwrap();
        let listener = UnixListener::bind(dir.join(CONTROL_SOCKET)).unwrap();
        let vmm = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut requests = Vec::new();
            while let Ok(Some(Call { id, request })) = frame::read(&mut stream) {
                let reply = match request {
                    Request::Wait { .. } => Reply::Exited(ExitStatus::Signaled(9)),
                    _ => Reply::Done,
                };
                requests.push(request);
                frame::write(&mut stream, &Answer { id, result: Ok(reply) }).unwrap();
            }
            requests
        });
        let line = ["vmrt", "--root", root.path().to_str().unwrap(), "kill", "web", signal];
        let Arguments { global, command: Command::Kill(args), .. } = Arguments::try_parse_from(line).unwrap() else {
            unreachable!()
        };
        assert_eq!(run(&context(&global, 0).unwrap(), &args).unwrap(), 0);
        vmm.join().unwrap()
    }

    #[test]
    fn kill_waits_for_the_end_after_sigkill_only() {
        assert!(matches!(requests_of_kill("TERM")[..], [Request::Signal { .. }]));
        assert!(matches!(requests_of_kill("KILL")[..], [Request::Signal { signal: 9, .. }, Request::Wait { .. }]));
    }
}
