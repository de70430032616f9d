//! `startContainer` hooks: programs of the container that run in it before the container's program.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use agent::ContainerConfig;
use oci_spec::runtime::{ContainerState, Hook, State};
use rustix::fs::MemfdFlags;

use crate::error::Error;

/// The hooks of a container, and the state that they read.
#[derive(Debug)]
pub(crate) struct StartHooks {
    hooks: Vec<Hook>,
    state: State,
}

impl StartHooks {
    /// The hooks of a specification; `None` if there are none.
    pub(crate) fn new(create: &ContainerConfig) -> Option<Self> {
        let hooks = create.spec.hooks().as_ref()?.start_container().clone().filter(|hooks| !hooks.is_empty())?;
        let mut state = State::default();
        state.set_version(create.spec.version().clone()).set_id(create.id.clone());
        state.set_status(ContainerState::Created).set_bundle(create.bundle.clone());
        state.set_annotations(create.spec.annotations().clone());
        Some(Self { hooks, state })
    }

    /// Runs the hooks in the container's first process, which is the caller. A hook without an environment gets `env`.
    /// Stops at the first failure.
    pub(crate) fn run(&self, env: &[CString]) -> Result<(), Error> {
        let mut state = self.state.clone();
        state.set_pid(i32::try_from(std::process::id()).ok());
        for (number, hook) in self.hooks.iter().enumerate() {
            run(hook, env, &state).map_err(|cause| Error::Hook { number, cause })?;
        }
        Ok(())
    }
}

/// Standard streams are files in memory. With pipes, a process that the hook leaves behind would delay the end of the
/// output.
fn run(hook: &Hook, env: &[CString], state: &State) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("exec {}: {error}", hook.path().display());
    let [mut stdin, mut output] = [memory_file().map_err(failed)?, memory_file().map_err(failed)?];
    let text = serde_json::to_vec(state).map_err(|error| error.to_string())?;
    stdin.write_all(&text).and_then(|()| stdin.rewind()).map_err(failed)?;
    let streams = [output.try_clone().map_err(failed)?, output.try_clone().map_err(failed)?];
    let [stdout, stderr] = streams.map(OwnedFd::from);
    let mut child =
        command(hook, env).stdin(OwnedFd::from(stdin)).stdout(stdout).stderr(stderr).spawn().map_err(failed)?;
    let status = match hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs) {
        None => child.wait().map_err(failed)?,
        Some(timeout) => wait(&mut child, timeout)
            .map_err(failed)?
            .ok_or_else(|| format!("hook ran past specified timeout of {:.1}s", timeout.as_secs_f64()))?,
    };
    match status.success() {
        true => Ok(()),
        false => Err(format!(
            "error running hook: {}, output: {}",
            agent::describe_exit_status(status),
            read_output(&mut output)
        )),
    }
}

fn command(hook: &Hook, env: &[CString]) -> Command {
    let mut command = Command::new(hook.path());
    let mut args = hook.args().iter().flatten();
    command.arg0(args.next().map_or_else(|| hook.path().as_os_str(), OsStr::new)).args(args).env_clear();
    match hook.env() {
        Some(own) => command.envs(own.iter().map(|variable| split_variable(variable.as_bytes()))),
        None => command.envs(env.iter().map(|variable| split_variable(variable.to_bytes()))),
    };
    command
}

/// Name and value of a variable.
fn split_variable(bytes: &[u8]) -> (&OsStr, &OsStr) {
    let end = bytes.iter().position(|byte| *byte == b'=').unwrap_or(bytes.len());
    (OsStr::from_bytes(&bytes[..end]), OsStr::from_bytes(bytes.get(end + 1..).unwrap_or_default()))
}

/// Polls the child, because a seccomp filter may forbid other ways to wait with a timeout. `None` if the time is over.
fn wait(child: &mut Child, timeout: Duration) -> std::io::Result<Option<ExitStatus>> {
    const PAUSE: Duration = Duration::from_millis(10);
    let end = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(PAUSE);
    }
}

fn memory_file() -> std::io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create("hook", MemfdFlags::CLOEXEC)?))
}

/// The beginning of a hook's output.
fn read_output(file: &mut File) -> String {
    const LIMIT: u64 = 4 << 10;
    let mut bytes = Vec::new();
    // An unreadable output is left out of the message.
    let _ = file.rewind().and_then(|()| file.take(LIMIT).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, timeout: Option<i64>) -> Hook {
        let mut hook = Hook::default();
        hook.set_path("/bin/sh".into());
        hook.set_args(Some(["sh", "-c", script].map(String::from).to_vec()));
        hook.set_timeout(timeout);
        hook
    }

    fn state() -> State {
        let mut state = State::default();
        state.set_id("web".into());
        state
    }

    #[test]
    fn a_hook_reads_the_state() {
        run(&hook("grep -q '\"id\":\"web\"'", None), &[], &state()).unwrap();
    }

    #[test]
    fn the_message_for_a_failed_hook_contains_its_output() {
        let error = run(&hook("echo why >&2; exit 4", Some(60)), &[], &state()).unwrap_err();
        assert_eq!(error, "error running hook: exit status 4, output: why");
    }

    #[test]
    fn a_hook_that_exceeds_its_timeout_is_killed() {
        let error = run(&hook("exec sleep 100", Some(1)), &[], &state()).unwrap_err();
        assert_eq!(error, "hook ran past specified timeout of 1.0s");
    }
}
