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
use crate::sandbox::status::ENDING_PATIENCE;
use crate::sandbox::vmm_process::kill;

/// How long a guest may take to hand a signal over before it counts as frozen.
const SIGNAL_DEADLINE: Duration = Duration::from_secs(3);

/// How long a container that was killed may take to end before its `kill` does.
const KILLED_PATIENCE: Duration = Duration::from_secs(2);

pub(crate) fn run(context: &Context, args: &KillArgs) -> Result<u8, Error> {
    let id: ContainerId = args.id.parse()?;
    let record = context.store.record(&id)?;
    let signal = signals::parse(&args.signal)?;
    if record.phase_now() == Phase::Stopped {
        return stopped(args.all);
    }
    match send(context, &id, signal, args.all) {
        Ok(()) => Ok(0),
        Err(RequestError::Failure(failure)) if is_over(failure.kind) => stopped(args.all),
        Err(error) if error.is_end() && record.vmm.wait(ENDING_PATIENCE) => stopped(args.all),
        Err(error) if signal == SIGKILL => {
            context.log.warn(&format!("the guest does not take the signal, its VMM is killed: {error}"));
            kill(record.vmm)?;
            Ok(0)
        }
        Err(error) => Err(error.into()),
    }
}

/// runc has nothing to signal then, and says so only of one process.
fn stopped(all: bool) -> Result<u8, Error> {
    if all { Ok(0) } else { Err(Error::NotRunning) }
}

fn is_over(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::NotFound | FailureKind::WrongState)
}

fn send(context: &Context, id: &ContainerId, signal: i32, all: bool) -> Result<(), RequestError> {
    let process = ProcessId { container: id.to_string(), exec: None };
    let mut client = control(&context.store.dir(id))?;
    client.call(&Request::Signal { process: process.clone(), signal, all }, &[], Some(SIGNAL_DEADLINE))?;
    if signal == SIGKILL {
        // So that whoever asks next finds it stopped. The signal was sent, whatever becomes of this wait.
        let _ = client.call(&Request::Wait { process }, &[], Some(KILLED_PATIENCE));
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

    /// What a VMM is asked by `kill` with this signal.
    fn asked(signal: &str) -> Vec<Request> {
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
    fn the_end_is_waited_for_where_the_signal_brings_it() {
        assert!(matches!(asked("TERM")[..], [Request::Signal { .. }]));
        assert!(matches!(asked("KILL")[..], [Request::Signal { signal: 9, .. }, Request::Wait { .. }]));
    }
}
