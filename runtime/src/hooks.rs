//! Hooks: programs of the host that run at turns of a container's life.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::{ContainerState, Hook, Hooks, Spec, State};
use thiserror::Error;

use crate::bundle::BundleError;
use crate::host_process::HostProcess;
use crate::log::Log;
use crate::state::{OCI_VERSION, Record};

/// When hooks run on the host. `startContainer` hooks run in the guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Turn {
    /// The machine's process and its network namespace exist, and nothing runs in it.
    Prestart,
    CreateRuntime,
    /// The same, but in the container's namespaces as far as the host has them: the network namespace.
    CreateContainer,
    /// The container's program was started.
    Poststart,
    /// Nothing is left of the container.
    Poststop,
}

/// The hook that failed.
#[derive(Debug, Error)]
#[error("error running {turn} hook #{number}")]
pub(crate) struct HookError {
    turn: &'static str,
    number: usize,
    source: HookFailure,
}

/// What went wrong with one, in runc's words.
#[derive(Debug, Error)]
pub(crate) enum HookFailure {
    #[error("encode the container's state")]
    State(#[source] serde_json::Error),
    #[error("exec {}", path.display())]
    Start { path: PathBuf, source: io::Error },
    #[error("error running hook: {}, stdout: {stdout}, stderr: {stderr}", agent::describe(*.status))]
    Failed { status: ExitStatus, stdout: String, stderr: String },
    #[error("hook ran past specified timeout of {:.1}s", .0.as_secs_f64())]
    Timeout(Duration),
}

impl Turn {
    const ALL: [Self; 5] =
        [Self::Prestart, Self::CreateRuntime, Self::CreateContainer, Self::Poststart, Self::Poststop];

    fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    fn status(self) -> ContainerState {
        match self {
            Self::Prestart | Self::CreateRuntime | Self::CreateContainer => ContainerState::Creating,
            Self::Poststart => ContainerState::Running,
            Self::Poststop => ContainerState::Stopped,
        }
    }

    fn of(self, hooks: &Hooks) -> &[Hook] {
        #[allow(deprecated, reason = "engines still write prestart hooks")]
        let prestart = hooks.prestart();
        let hooks = match self {
            Self::Prestart => prestart,
            Self::CreateRuntime => hooks.create_runtime(),
            Self::CreateContainer => hooks.create_container(),
            Self::Poststart => hooks.poststart(),
            Self::Poststop => hooks.poststop(),
        };
        hooks.as_deref().unwrap_or_default()
    }
}

/// Checks what must hold of every hook, the guest's included.
pub(crate) fn check(hooks: &Hooks) -> Result<(), BundleError> {
    let on_host = Turn::ALL.into_iter().map(|turn| (turn.name(), turn.of(hooks)));
    let in_guest = ("startContainer", hooks.start_container().as_deref().unwrap_or_default());
    for (turn, hook) in on_host.chain([in_guest]).flat_map(|(turn, hooks)| hooks.iter().map(move |hook| (turn, hook))) {
        if !hook.path().is_absolute() {
            return Err(BundleError::Hook { turn, reason: format!("path {:?} is not absolute", hook.path()) });
        }
        if hook.timeout().is_some_and(|timeout| timeout <= 0) {
            return Err(BundleError::Hook { turn, reason: "timeout is not greater than zero".into() });
        }
    }
    Ok(())
}

/// Leaves in the guest's specification only what the guest runs.
pub(crate) fn leave_guests(spec: &mut Spec) {
    let of_guest = spec.hooks().as_ref().and_then(|hooks| hooks.start_container().clone());
    spec.set_hooks(of_guest.filter(|hooks| !hooks.is_empty()).map(|hooks| {
        let mut left = Hooks::default();
        left.set_start_container(Some(hooks));
        left
    }));
}

/// Runs everything that comes before the machine starts. The first failure ends it.
pub(crate) fn run_creating(record: &Record) -> Result<(), HookError> {
    [Turn::Prestart, Turn::CreateRuntime, Turn::CreateContainer].into_iter().try_for_each(|turn| run_row(turn, record))
}

/// Runs what comes when the program was started. The first failure ends it, and is to end the container.
pub(crate) fn run_poststart(record: &Record) -> Result<(), HookError> {
    run_row(Turn::Poststart, record)
}

fn run_row(turn: Turn, record: &Record) -> Result<(), HookError> {
    of(record, turn).enumerate().try_for_each(|(number, hook)| run(turn, number, hook, record))
}

/// Runs what comes when nothing can be stopped any more: what fails is told in the log.
pub(crate) fn run_poststop(record: &Record, log: &Log) {
    for (number, hook) in of(record, Turn::Poststop).enumerate() {
        if let Err(error) = run(Turn::Poststop, number, hook, record) {
            log.warn(&crate::error::chain(&error));
        }
    }
}

fn of(record: &Record, turn: Turn) -> impl Iterator<Item = &Hook> {
    record.hooks.iter().flat_map(move |hooks| turn.of(hooks))
}

fn run(turn: Turn, number: usize, hook: &Hook, record: &Record) -> Result<(), HookError> {
    let state = state(turn, record);
    let mut command = command(hook);
    let entered = match turn {
        Turn::CreateContainer => enter(&mut command, record),
        _ => {
            command.current_dir(&record.bundle);
            Ok(())
        }
    };
    let result = entered.and_then(|()| execute(hook, command, &state));
    result.map_err(|source| HookError { turn: turn.name(), number, source })
}

/// What a hook reads from its standard input.
fn state(turn: Turn, record: &Record) -> State {
    let mut state = State::default();
    state.set_version(OCI_VERSION.into()).set_id(record.id.clone()).set_status(turn.status());
    state.set_pid(Some(record.vmm.pid).filter(|_| turn != Turn::Poststop)).set_bundle(record.bundle.clone());
    state.set_annotations(Some(record.annotations.clone()).filter(|annotations| !annotations.is_empty()));
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

/// Lets a command run in the sandbox's namespaces on the host, which are that of its network and perhaps one of users, and in the
/// container's root file system as the host has it.
fn enter(command: &mut Command, record: &Record) -> Result<(), HookFailure> {
    let open = |name| {
        let path = PathBuf::from(format!("/proc/{}/ns/{name}", record.vmm.pid));
        File::open(&path).map_err(|source| HookFailure::Start { path, source })
    };
    let user = record.user_namespace.then(|| open("user")).transpose()?;
    let network = open("net")?;
    command.current_dir(&record.rootfs);
    let join = move || {
        // First, since the other is entered as its root.
        user.as_ref().map_or(Ok(()), |user| setns(user, CloneFlags::CLONE_NEWUSER))?;
        Ok(setns(&network, CloneFlags::CLONE_NEWNET)?)
    };
    // SAFETY: the closure makes system calls only, and touches no memory another thread could have left locked.
    unsafe { command.pre_exec(join) };
    Ok(())
}

/// Streams are files in memory: so neither a hook that reads nothing nor one that leaves a process behind is waited
/// for.
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
        let process = i32::try_from(child.id()).ok().and_then(|pid| HostProcess::of(pid).ok()?.open());
        if process.is_some_and(|process| !process.wait(timeout)) {
            child.kill().and_then(|()| child.wait()).map_err(started)?;
            return Err(HookFailure::Timeout(timeout));
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

/// The beginning of what a hook wrote.
fn text_of(file: &mut File) -> String {
    const LIMIT: u64 = 16 << 10;
    let mut bytes = Vec::new();
    // What cannot be read is only missing from a message.
    let _ = file.rewind().and_then(|()| file.take(LIMIT).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::error::chain;

    /// A container in `dir` with hooks that run shell scripts.
    fn record(dir: &Path, hooks: &Value) -> Record {
        let own = HostProcess::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        serde_json::from_value(json!({
            "id": "web", "phase": "creating", "vmm": own, "bootId": "now", "bundle": dir, "rootfs": dir,
            "created": "", "annotations": {"a": "b"}, "cgroup": [], "machine": crate::sizing::Size::NONE, "hooks": hooks,
        }))
        .unwrap()
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
        run_creating(&record(dir.path(), &hooks)).unwrap();
        let order = fs::read_to_string(dir.path().join("order")).unwrap();
        let here = dir.path().canonicalize().unwrap();
        assert_eq!(order, format!("prestart\nhook first\nruntime\n{}\ncontainer\n", here.display()));
        let state: Value = serde_json::from_slice(&fs::read(dir.path().join("state")).unwrap()).unwrap();
        let expected = json!({"ociVersion": OCI_VERSION, "id": "web", "status": "creating", "pid": std::process::id(),
            "bundle": dir.path(), "annotations": {"a": "b"}});
        assert_eq!(state, expected);
    }

    #[test]
    fn a_failure_is_told_with_what_was_said_and_ends_the_row() {
        let dir = tempfile::tempdir().unwrap();
        let failing = script("echo out; echo err >&2; exit 3");
        let record = record(dir.path(), &json!({"prestart": [script("true"), failing, script("touch later")]}));
        let error = chain(&run_creating(&record).unwrap_err());
        let expected = "error running prestart hook #1: error running hook: exit status 3, stdout: out\n, stderr: err";
        assert_eq!(error, expected);
        assert!(!dir.path().join("later").exists());
    }

    #[test]
    fn the_first_poststart_hook_that_fails_is_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let row = [script("true"), script("exit 3"), script("touch later")];
        let error = run_poststart(&record(dir.path(), &json!({"poststart": row}))).unwrap_err();
        assert!(chain(&error).starts_with("error running poststart hook #1: error running hook: exit status 3"));
        assert!(!dir.path().join("later").exists());
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let hook = json!({"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1});
        let error = chain(&run_creating(&record(dir.path(), &json!({"createRuntime": [hook]}))).unwrap_err());
        assert_eq!(error, "error running createRuntime hook #0: hook ran past specified timeout of 1.0s");
    }

    #[test]
    fn the_environment_is_the_one_given() {
        let dir = tempfile::tempdir().unwrap();
        let hook = json!({"path": "/usr/bin/env", "env": ["A=1", "B=x=y"]});
        let told = json!({"path": "/bin/sh", "args": ["sh", "-c", "/usr/bin/env >env"], "env": ["A=1", "B=x=y"]});
        run_creating(&record(dir.path(), &json!({"prestart": [hook, told]}))).unwrap();
        let env = fs::read_to_string(dir.path().join("env")).unwrap();
        assert!(env.lines().any(|line| line == "B=x=y") && !env.contains("HOME="), "{env}");
    }

    #[test]
    fn later_hooks_go_on_after_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let missing = json!({"path": "/nonexistent"});
        let record = record(dir.path(), &json!({"poststop": [missing, script("cat >state")]}));
        let log = Log::new(Some(&dir.path().join("log")), crate::log::Format::Text, false).unwrap();
        run_poststop(&record, &log);
        let state: Value = serde_json::from_slice(&fs::read(dir.path().join("state")).unwrap()).unwrap();
        assert_eq!((&state["status"], state.get("pid")), (&json!("stopped"), None));
        let text = fs::read_to_string(dir.path().join("log")).unwrap();
        assert!(text.contains("error running poststop hook #0: exec /nonexistent: no such file"), "{text}");
    }

    #[test]
    fn the_guest_gets_its_own_hooks_only() {
        let mut spec = Spec::default();
        let hooks = |value| Some(serde_json::from_value::<Hooks>(value).unwrap());
        let guests = json!([{"path": "/in"}]);
        spec.set_hooks(hooks(json!({"prestart": [{"path": "/out"}], "startContainer": guests})));
        leave_guests(&mut spec);
        assert_eq!(*spec.hooks(), hooks(json!({"startContainer": guests})));
        spec.set_hooks(hooks(json!({"prestart": [{"path": "/out"}], "startContainer": []})));
        leave_guests(&mut spec);
        assert_eq!(*spec.hooks(), None);
    }
}
