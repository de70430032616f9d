//! The runtime under test, driven by its command line.

use std::env;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::bundle::Bundle;
use crate::caller::Caller;
use crate::host_snapshot::HostSnapshot;
use crate::{TIMEOUT, eventually};

/// The program under test: `vmrt`, or the one that `VMRT_BIN` names (`runc` proves the tests).
#[must_use]
pub fn program() -> String {
    env::var("VMRT_BIN").unwrap_or_else(|_| "vmrt".into())
}

/// Whether the program under test is vmrt, and not a runtime without virtual machines.
#[must_use]
pub fn is_vmrt() -> bool {
    !matches!(Path::new(&program()).file_name().and_then(|name| name.to_str()), Some("runc" | "crun"))
}

/// The exit status and the output of a command.
#[derive(Debug)]
pub struct CommandResult {
    /// The exit status, or 128 and the signal's number.
    pub code: i32,
    /// The standard output.
    pub stdout: Vec<u8>,
    /// The standard error.
    pub stderr: Vec<u8>,
}

impl CommandResult {
    /// The standard output as text, without white space around it.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_string()
    }

    /// The standard error as text, without white space around it.
    #[must_use]
    pub fn message(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_string()
    }

    /// The value of a line `name=value` of the standard output.
    ///
    /// # Panics
    ///
    /// Panics if there is no such line.
    #[must_use]
    pub fn value(&self, name: &str) -> String {
        let text = self.text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("no {name} in {self:?}")).trim().to_string()
    }

    /// Asserts the values of lines `name=value` of the standard output.
    ///
    /// # Panics
    ///
    /// Panics if a line is missing or has another value.
    #[track_caller]
    pub fn assert_values(&self, expected: &[(&str, &str)]) {
        for (name, value) in expected {
            assert_eq!(self.value(name), *value, "{name}: {self:?}");
        }
    }

    /// Returns itself if the command succeeded.
    ///
    /// # Panics
    ///
    /// Panics if it did not.
    #[expect(clippy::must_use_candidate, reason = "often only the success is of interest")]
    pub fn ok(self) -> Self {
        assert!(self.code == 0, "status {}, stdout {:?}, stderr {:?}", self.code, self.text(), self.message());
        self
    }
}

/// A running command whose output is collected.
pub struct RunningCommand {
    /// The process.
    pub child: Child,
    streams: [Option<Receiver<Vec<u8>>>; 2],
}

fn collect(stream: Option<impl Read + Send + 'static>) -> Option<Receiver<Vec<u8>>> {
    let mut stream = stream?;
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("a pipe was read");
        // The receiver is gone if the test has failed.
        let _ = sender.send(bytes);
    });
    Some(receiver)
}

/// The output of a command. Its child processes may keep the stream open after its own end, but not longer than [`TIMEOUT`].
fn collected(stream: Option<Receiver<Vec<u8>>>) -> Vec<u8> {
    let Some(stream) = stream else { return Vec::new() };
    stream.recv_timeout(TIMEOUT).expect("a command ended, and its output goes on: a process it started has it open")
}

/// The exit status as a shell reports it.
#[must_use]
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// Waits for a process, and returns its exit status.
///
/// # Panics
///
/// Kills the process and panics if it takes too long.
pub fn wait(child: &mut Child) -> i32 {
    wait_within(TIMEOUT, child)
}

/// Waits for a process that may take long, and returns its exit status.
///
/// # Panics
///
/// Kills the process and panics if it takes longer than `timeout`.
pub fn wait_within(timeout: Duration, child: &mut Child) -> i32 {
    let status = eventually(timeout, || child.try_wait().expect("a child was waited for"));
    exit_code(status.unwrap_or_else(|| {
        child.kill().and_then(|()| child.wait()).expect("a hanging child was ended");
        panic!("a command did not end within {timeout:?}")
    }))
}

impl RunningCommand {
    /// Starts a command with these bytes as its whole standard input.
    ///
    /// # Panics
    ///
    /// Panics if it does not start.
    #[must_use]
    pub fn start(command: &mut Command, input: Option<Vec<u8>>) -> Self {
        let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the command starts");
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            // A process need not read all of its input.
            thread::spawn(move || drop(stdin.write_all(&input)));
        }
        let streams = [collect(child.stdout.take()), collect(child.stderr.take())];
        Self { child, streams }
    }

    /// Waits for the end of the command.
    ///
    /// # Panics
    ///
    /// Panics if it takes too long.
    #[must_use]
    pub fn end(self) -> CommandResult {
        self.end_within(TIMEOUT)
    }

    /// Waits for the end of a command that may take long.
    ///
    /// # Panics
    ///
    /// Panics if it takes longer than `timeout`.
    #[must_use]
    pub fn end_within(mut self, timeout: Duration) -> CommandResult {
        let code = wait_within(timeout, &mut self.child);
        let [stdout, stderr] = self.streams.map(collected);
        CommandResult { code, stdout, stderr }
    }
}

/// The runtime with a separate state directory. When it is dropped, it checks that the machine is as it was before.
pub struct Runtime {
    root: TempDir,
    before: HostSnapshot,
    caller: Caller,
}

impl Default for Runtime {
    fn default() -> Self {
        Self::new()
    }
}

impl Runtime {
    /// Takes a snapshot of the machine, and creates a state directory for root.
    ///
    /// # Panics
    ///
    /// Panics if the state directory cannot be created.
    #[must_use]
    pub fn new() -> Self {
        Self::for_caller(Caller::root())
    }

    /// The same for another caller than root.
    ///
    /// # Panics
    ///
    /// Panics if the state directory cannot be created.
    #[must_use]
    pub fn for_caller(caller: Caller) -> Self {
        let root = tempfile::Builder::new().prefix("state").tempdir_in("/run").expect("a state directory");
        caller.chown(root.path());
        Self { before: HostSnapshot::take(), root, caller }
    }

    /// The state directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// A command of the runtime.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.caller.command(Path::new(&program()));
        command.arg("--root").arg(self.root()).args(arguments);
        command
    }

    /// Runs a command of the runtime to its end.
    #[must_use]
    pub fn call(&self, arguments: &[&str]) -> CommandResult {
        RunningCommand::start(&mut self.command(arguments), None).end()
    }

    /// Runs a bundle in the foreground, with a new id.
    #[must_use]
    pub fn run(&self, bundle: &Bundle) -> CommandResult {
        self.run_command(bundle, None).end()
    }

    /// The same with this standard input.
    #[must_use]
    pub fn run_with_input(&self, bundle: &Bundle, input: Vec<u8>) -> CommandResult {
        self.run_command(bundle, Some(input)).end()
    }

    fn run_command(&self, bundle: &Bundle, input: Option<Vec<u8>>) -> RunningCommand {
        RunningCommand::start(self.command(&["run", "--bundle"]).arg(bundle.path()).arg(new_id()), input)
    }

    /// Calls `create` and `start` for a bundle. The container's output is discarded.
    ///
    /// # Panics
    ///
    /// Panics if one of them fails.
    #[must_use]
    pub fn start_container<'a>(&'a self, bundle: &'a Bundle) -> Container<'a> {
        let container = self.create_container(bundle);
        container.call("start", &[]).ok();
        container
    }

    /// Calls `create` for a bundle. The container's output is discarded.
    ///
    /// # Panics
    ///
    /// Panics if it fails.
    #[must_use]
    pub fn create_container<'a>(&'a self, bundle: &'a Bundle) -> Container<'a> {
        let id = new_id();
        let mut command = self.command(&["create", "--bundle"]);
        // A container keeps its streams open. With pipes here, waiting for their end would wait for the container's end.
        let log = self.root().with_extension("create");
        let file = std::fs::File::create(&log).expect("a file for the output");
        command
            .arg(bundle.path())
            .arg(&id)
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a descriptor"))
            .stderr(file);
        let code = wait(&mut command.spawn().expect("create starts"));
        let output = std::fs::read_to_string(&log).expect("the output");
        std::fs::remove_file(log).expect("the output's file was removed");
        assert_eq!(code, 0, "create: {output}");
        Container { runtime: self, bundle, id }
    }

    /// Checks that the runtime has left nothing behind.
    ///
    /// # Panics
    ///
    /// Panics if it has.
    pub fn assert_clean(&self) {
        self.before.assert_restored(Duration::from_secs(10), |_| false);
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if thread::panicking() {
            for entry in std::fs::read_dir(self.root()).into_iter().flatten().flatten() {
                let id = entry.file_name().to_string_lossy().into_owned();
                let deletion = self.command(&["delete", "--force", &id]).spawn();
                // The test has failed already; a second panic would hide the reason.
                let _ = deletion.map(|mut child| eventually(TIMEOUT, || child.try_wait().ok().flatten()));
            }
        } else {
            self.assert_clean();
        }
    }
}

/// An id that no other test uses.
#[must_use]
pub fn new_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A container; deleted by force when dropped.
pub struct Container<'a> {
    runtime: &'a Runtime,
    /// The bundle, which must exist as long as the container.
    pub bundle: &'a Bundle,
    /// The container's id.
    pub id: String,
}

impl Container<'_> {
    /// Runs a command of the runtime on the container, with these arguments after its id.
    #[must_use]
    pub fn call(&self, name: &str, arguments: &[&str]) -> CommandResult {
        self.runtime.call(&[&[name, &self.id], arguments].concat())
    }

    /// Executes a process in the container and waits for its end.
    #[must_use]
    pub fn exec(&self, arguments: &[&str]) -> CommandResult {
        self.call("exec", arguments)
    }

    /// Executes a shell script in the container.
    #[must_use]
    pub fn script(&self, script: &str) -> CommandResult {
        self.exec(&["sh", "-c", script])
    }

    /// The output of `state`.
    ///
    /// # Panics
    ///
    /// Panics if that is not JSON.
    #[must_use]
    pub fn state(&self) -> Value {
        serde_json::from_slice(&self.call("state", &[]).ok().stdout).expect("state prints JSON")
    }

    /// The container's status, for example `running`.
    #[must_use]
    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap_or_default().to_string()
    }

    /// The pid of the container's process on the host.
    ///
    /// # Panics
    ///
    /// Panics if there is none.
    #[must_use]
    pub fn pid(&self) -> i32 {
        let pid = self.state()["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        pid.expect("state has a pid")
    }

    /// Waits until the container has this status.
    ///
    /// # Panics
    ///
    /// Panics if it takes too long.
    pub fn await_status(&self, wanted: &str) {
        let reached = eventually(TIMEOUT, || (self.status() == wanted).then_some(()));
        assert!(reached.is_some(), "{} is {}, not {wanted}", self.id, self.status());
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let done = self.call("delete", &["--force"]);
        assert!(thread::panicking() || done.code == 0, "delete --force: {done:?}");
    }
}
