//! OCI hooks: programs of the host that run at certain points of a container's life cycle.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::{Hook, Hooks, State};
use thiserror::Error;

use crate::base::error_chain::chain;
use crate::base::log::Log;
use crate::host::process::HostProcess;
use crate::spec::OCI_VERSION;
use crate::spec::hooks::HookPoint;

/// The failure of a hook.
#[derive(Debug, Error)]
#[error("error running {point} hook #{number}")]
pub(crate) struct HookError {
    point: &'static str,
    number: usize,
    source: HookFailure,
}

/// The reason why a hook failed, in runc's words.
#[derive(Debug, Error)]
pub(crate) enum HookFailure {
    #[error("encode the container's state")]
    State(#[source] serde_json::Error),
    #[error("exec {}", path.display())]
    Start { path: PathBuf, source: io::Error },
    #[error("error running hook: {}, stdout: {stdout}, stderr: {stderr}", agent::describe_exit_status(*.status))]
    Failed { status: ExitStatus, stdout: String, stderr: String },
    #[error("hook ran past specified timeout of {:.1}s", .0.as_secs_f64())]
    Timeout(Duration),
}

/// The container whose hooks are run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Container<'a> {
    pub(crate) hooks: Option<&'a Hooks>,
    pub(crate) id: &'a str,
    /// The container's process on the host.
    pub(crate) process: HostProcess,
    /// Whether the process is in a user namespace of its own.
    pub(crate) user_namespace: bool,
    pub(crate) bundle: &'a Path,
    pub(crate) rootfs: &'a Path,
    pub(crate) annotations: &'a HashMap<String, String>,
}

/// Runs the hooks that come before the guest boots: `prestart`, `createRuntime` and `createContainer`. The first failure ends the
/// sequence.
pub(crate) fn run_creating(container: Container) -> Result<(), HookError> {
    let points = [HookPoint::Prestart, HookPoint::CreateRuntime, HookPoint::CreateContainer];
    points.into_iter().try_for_each(|point| run_all(point, container))
}

/// Runs the `poststart` hooks. The first failure ends the sequence; the caller then ends the container.
pub(crate) fn run_poststart(container: Container) -> Result<(), HookError> {
    run_all(HookPoint::Poststart, container)
}

fn run_all(point: HookPoint, container: Container) -> Result<(), HookError> {
    hooks_at(point, container).enumerate().try_for_each(|(number, hook)| run(point, number, hook, container))
}

/// Runs the `poststop` hooks. The container has ended already, so a failure is only logged.
pub(crate) fn run_poststop(container: Container, log: &Log) {
    for (number, hook) in hooks_at(HookPoint::Poststop, container).enumerate() {
        if let Err(error) = run(HookPoint::Poststop, number, hook, container) {
            log.warn(&chain(&error));
        }
    }
}

fn hooks_at(point: HookPoint, container: Container<'_>) -> impl Iterator<Item = &Hook> {
    container.hooks.into_iter().flat_map(move |hooks| point.of(hooks))
}

fn run(point: HookPoint, number: usize, hook: &Hook, container: Container) -> Result<(), HookError> {
    let state = state(point, container);
    let mut command = command(hook);
    let entered = match point {
        HookPoint::CreateContainer => enter_namespaces(&mut command, container),
        _ => {
            command.current_dir(container.bundle);
            Ok(())
        }
    };
    let result = entered.and_then(|()| execute(hook, command, &state));
    result.map_err(|source| HookError { point: point.name(), number, source })
}

/// Builds the state that a hook reads from its standard input.
fn state(point: HookPoint, container: Container) -> State {
    let mut state = State::default();
    state.set_version(OCI_VERSION.into()).set_id(container.id.to_owned()).set_status(point.status());
    let pid = Some(container.process.pid).filter(|_| point != HookPoint::Poststop);
    state.set_pid(pid).set_bundle(container.bundle.to_owned());
    state.set_annotations(Some(container.annotations.clone()).filter(|annotations| !annotations.is_empty()));
    state
}

fn command(hook: &Hook) -> Command {
    let mut command = Command::new(hook.path());
    let mut args = hook.args().iter().flatten();
    command.arg0(args.next().map_or_else(|| hook.path().as_os_str(), std::ffi::OsStr::new)).args(args);
    if let Some(env) = hook.env().as_ref().filter(|env| !env.is_empty()) {
        command.env_clear().envs(env.iter().map(|variable| variable.split_once('=').unwrap_or((variable, ""))));
    }
    command
}

/// Makes `command` run in the sandbox's network namespace, in its user namespace if it has one, and with the container's root file
/// system on the host as its working directory.
fn enter_namespaces(command: &mut Command, container: Container) -> Result<(), HookFailure> {
    let open = |name| {
        let path = PathBuf::from(format!("/proc/{}/ns/{name}", container.process.pid));
        File::open(&path).map_err(|source| HookFailure::Start { path, source })
    };
    let user = container.user_namespace.then(|| open("user")).transpose()?;
    let network = open("net")?;
    command.current_dir(container.rootfs);
    let join = move || {
        // The user namespace comes first: entering the network namespace needs the privileges of its root.
        user.as_ref().map_or(Ok(()), |user| setns(user, CloneFlags::CLONE_NEWUSER))?;
        Ok(setns(&network, CloneFlags::CLONE_NEWNET)?)
    };
    // SAFETY: the closure makes system calls only and takes no lock, so it is sound between `fork` and `execve`.
    unsafe { command.pre_exec(join) };
    Ok(())
}

/// Runs a hook. Its streams are memory files, so that vmrt does not block on a hook that reads nothing, nor on a background process
/// that a hook leaves running.
fn execute(hook: &Hook, mut command: Command, state: &State) -> Result<(), HookFailure> {
    let started = |source| HookFailure::Start { path: hook.path().clone(), source };
    let mut stdin = memory_file().map_err(started)?;
    let text = serde_json::to_vec(state).map_err(HookFailure::State)?;
    stdin.write_all(&text).and_then(|()| stdin.rewind()).map_err(started)?;
    let [mut stdout, mut stderr] = [memory_file().map_err(started)?, memory_file().map_err(started)?];
    let output = [stdout.try_clone().map_err(started)?, stderr.try_clone().map_err(started)?];
    let [out, err] = output.map(OwnedFd::from);
    let mut child = command.stdin(OwnedFd::from(stdin)).stdout(out).stderr(err).spawn().map_err(started)?;
    if let Some(timeout) = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs) {
        // The child is reaped only below, so its pid is not reused meanwhile.
        let has_ended = HostProcess::of(child.id().cast_signed()).map(|process| process.wait(timeout));
        if !matches!(has_ended, Ok(true)) {
            child.kill().and_then(|()| child.wait()).map_err(started)?;
            return Err(has_ended.map_or_else(started, |_| HookFailure::Timeout(timeout)));
        }
    }
    let status = child.wait().map_err(started)?;
    match status.success() {
        true => Ok(()),
        false => Err(HookFailure::Failed { status, stdout: text_of(&mut stdout), stderr: text_of(&mut stderr) }),
    }
}

fn memory_file() -> io::Result<File> {
    Ok(File::from(memfd_create("hook", MFdFlags::MFD_CLOEXEC)?))
}

/// Reads the first 16 KiB of a hook's output.
fn text_of(file: &mut File) -> String {
    const LIMIT: u64 = 16 << 10;
    let mut bytes = Vec::new();
    // The text only completes an error message, so a failure to read it is ignored.
    let _ = file.rewind().and_then(|()| file.take(LIMIT).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::*;

    /// A container whose bundle and root file system are `dir`.
    struct Fixture<'a> {
        dir: &'a Path,
        hooks: Hooks,
        annotations: HashMap<String, String>,
    }

    impl Fixture<'_> {
        fn container(&self) -> Container<'_> {
            Container {
                hooks: Some(&self.hooks),
                id: "web",
                process: HostProcess::of(i32::try_from(std::process::id()).unwrap()).unwrap(),
                user_namespace: false,
                bundle: self.dir,
                rootfs: self.dir,
                annotations: &self.annotations,
            }
        }
    }

    /// Makes a container in `dir` with hooks given as JSON.
    fn fixture<'a>(dir: &'a Path, hooks: &Value) -> Fixture<'a> {
        let hooks = serde_json::from_value(hooks.clone()).unwrap();
        Fixture { dir, hooks, annotations: [("a".to_owned(), "b".to_owned())].into() }
    }

    fn script(text: &str) -> Value {
        json!({"path": "/bin/sh", "args": ["hook", "-c", text]})
    }

    #[test]
    fn hooks_run_in_order_and_read_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let hooks = json!({
            "createContainer": [script("pwd >>order; echo container >>order")],
            "createRuntime": [script("echo $0 first >>order"), script("echo runtime >>order")],
            "prestart": [script("cat >state; echo prestart >>order")],
        });
        run_creating(fixture(dir.path(), &hooks).container()).unwrap();
        let order = fs::read_to_string(dir.path().join("order")).unwrap();
        let here = dir.path().canonicalize().unwrap();
        assert_eq!(order, format!("prestart\nhook first\nruntime\n{}\ncontainer\n", here.display()));
        let state: Value = serde_json::from_slice(&fs::read(dir.path().join("state")).unwrap()).unwrap();
        let expected = json!({"ociVersion": OCI_VERSION, "id": "web", "status": "creating", "pid": std::process::id(),
            "bundle": dir.path(), "annotations": {"a": "b"}});
        assert_eq!(state, expected);
    }

    #[test]
    fn a_failed_hook_is_reported_with_its_output_and_ends_the_sequence() {
        let dir = tempfile::tempdir().unwrap();
        let failing = script("echo out; echo err >&2; exit 3");
        let fixture = fixture(dir.path(), &json!({"prestart": [script("true"), failing, script("touch later")]}));
        let error = chain(&run_creating(fixture.container()).unwrap_err());
        let expected = "error running prestart hook #1: error running hook: exit status 3, stdout: out\n, stderr: err";
        assert_eq!(error, expected);
        assert!(!dir.path().join("later").exists());
    }

    #[test]
    fn no_poststart_hook_runs_after_a_failed_one() {
        let dir = tempfile::tempdir().unwrap();
        let scripts = [script("true"), script("exit 3"), script("touch later")];
        let error = run_poststart(fixture(dir.path(), &json!({"poststart": scripts})).container()).unwrap_err();
        assert!(chain(&error).starts_with("error running poststart hook #1: error running hook: exit status 3"));
        assert!(!dir.path().join("later").exists());
    }

    #[test]
    fn a_hook_that_exceeds_its_timeout_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let hook = json!({"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1});
        let error =
            chain(&run_creating(fixture(dir.path(), &json!({"createRuntime": [hook]})).container()).unwrap_err());
        assert_eq!(error, "error running createRuntime hook #0: hook ran past specified timeout of 1.0s");
    }

    #[test]
    fn a_hook_with_an_environment_does_not_inherit_that_of_vmrt() {
        let dir = tempfile::tempdir().unwrap();
        let hook = json!({"path": "/usr/bin/env", "env": ["A=1", "B=x=y"]});
        let writer = json!({"path": "/bin/sh", "args": ["sh", "-c", "/usr/bin/env >env"], "env": ["A=1", "B=x=y"]});
        run_creating(fixture(dir.path(), &json!({"prestart": [hook, writer]})).container()).unwrap();
        let env = fs::read_to_string(dir.path().join("env")).unwrap();
        assert!(env.lines().any(|line| line == "B=x=y") && !env.contains("HOME="), "{env}");
    }

    #[test]
    fn poststop_hooks_continue_after_a_failed_one() {
        let dir = tempfile::tempdir().unwrap();
        let missing = json!({"path": "/nonexistent"});
        let fixture = fixture(dir.path(), &json!({"poststop": [missing, script("cat >state")]}));
        let log = Log::new(Some(&dir.path().join("log")), crate::base::log::Format::Text, false).unwrap();
        run_poststop(fixture.container(), &log);
        let state: Value = serde_json::from_slice(&fs::read(dir.path().join("state")).unwrap()).unwrap();
        assert_eq!((&state["status"], state.get("pid")), (&json!("stopped"), None));
        let text = fs::read_to_string(dir.path().join("log")).unwrap();
        assert!(text.contains("error running poststop hook #0: exec /nonexistent: no such file"), "{text}");
    }
}
