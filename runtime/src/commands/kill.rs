//! `vmrt kill`

use crate::base::container_id::ContainerId;
use crate::cli::KillArgs;
use crate::commands::error::Error;
use crate::host::signals;
use crate::sandbox::context::Context;
use crate::sandbox::kill::kill;

pub(crate) fn run(context: &Context, args: &KillArgs) -> Result<u8, Error> {
    let id: ContainerId = args.id.parse()?;
    let record = context.store.record(&id)?;
    kill(context, &id, &record, signals::parse(&args.signal)?, args.all)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use agent::ContainerRequest;
    use std::os::unix::net::UnixListener;
    use std::{fs, thread};

    use agent::{ExitStatus, frame};
    use clap::Parser;
    use vmm::control::{Answer, Call, Reply, Request};

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
        assert!(matches!(requests_of_kill("TERM")[..], [Request::Container(ContainerRequest::Signal { .. })]));
        assert!(matches!(
            requests_of_kill("KILL")[..],
            [Request::Container(ContainerRequest::Signal { signal: 9, .. }), Request::Wait { .. }]
        ));
    }
}
