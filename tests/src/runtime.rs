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

/// The program under test: `vmrt`, or what `VMRT_BIN` names (`runc` proves the tests).
#[must_use]
pub fn program() -> String {
    env::var("VMRT_BIN").unwrap_or_else(|_| "vmrt".into())
}

/// Whether the program under test is vmrt itself and not a runtime without virtual machines.
#[must_use]
pub fn is_vmrt() -> bool {
    !matches!(Path::new(&program()).file_name().and_then(|name| name.to_str()), Some("runc" | "crun"))
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct CommandResult {
    /// Its exit status; 128 and the signal's number for a death by signal.
    pub code: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl CommandResult {
    /// Its standard output as text, without white space around it.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_string()
    }

    /// Its standard error as text, without white space around it.
    #[must_use]
    pub fn message(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_string()
    }

    /// The value of a line `name=value` of its output.
    ///
    /// # Panics
    ///
    /// Where there is no such line.
    #[must_use]
    pub fn value(&self, name: &str) -> String {
        let text = self.text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("no {name} in {self:?}")).trim().to_string()
    }

    /// Itself, if it succeeded.
    ///
    /// # Panics
    ///
    /// Where it did not.
    #[expect(clippy::must_use_candidate, reason = "that it succeeded is often all one wants to know")]
    pub fn ok(self) -> Self {
        assert!(self.code == 0, "status {}, stdout {:?}, stderr {:?}", self.code, self.text(), self.message());
        self
    }
}

/// A command that runs.
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
        // Nobody waits for it any more where the test has failed.
        let _ = sender.send(bytes);
    });
    Some(receiver)
}

/// What a command wrote. Its processes may have kept the stream after its own end, but not for ever.
fn written(stream: Option<Receiver<Vec<u8>>>) -> Vec<u8> {
    let Some(stream) = stream else { return Vec::new() };
    stream.recv_timeout(TIMEOUT).expect("a command ended, and its output goes on: a process it started has it open")
}

/// Exit status as a shell tells it.
#[must_use]
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// Waits for a process; ends it and panics where it takes too long.
///
/// # Panics
///
/// As said.
pub fn wait(child: &mut Child) -> i32 {
    wait_within(TIMEOUT, child)
}

fn wait_within(timeout: Duration, child: &mut Child) -> i32 {
    let status = eventually(timeout, || child.try_wait().expect("a child was waited for"));
    exit_code(status.unwrap_or_else(|| {
        child.kill().and_then(|()| child.wait()).expect("a hanging child was ended");
        panic!("a command did not end within {timeout:?}")
    }))
}

impl RunningCommand {
    /// Starts a command, with these bytes and nothing more to read.
    ///
    /// # Panics
    ///
    /// Where it does not start.
    #[must_use]
    pub fn start(command: &mut Command, input: Option<Vec<u8>>) -> Self {
        let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the command starts");
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            // A process need not read all it is given.
            thread::spawn(move || drop(stdin.write_all(&input)));
        }
        let streams = [collect(child.stdout.take()), collect(child.stderr.take())];
        Self { child, streams }
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// Where it takes too long.
    #[must_use]
    pub fn end(self) -> CommandResult {
        self.end_within(TIMEOUT)
    }

    /// Waits for the end of what may take long.
    ///
    /// # Panics
    ///
    /// Where it takes longer than `timeout`.
    #[must_use]
    pub fn end_within(mut self, timeout: Duration) -> CommandResult {
        let code = wait_within(timeout, &mut self.child);
        let [stdout, stderr] = self.streams.map(written);
        CommandResult { code, stdout, stderr }
    }
}

/// The runtime with a state directory of its own, on a machine it leaves as it found it.
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
    /// Counts what is on the machine first.
    ///
    /// # Panics
    ///
    /// Where there is no place for its state directory.
    #[must_use]
    pub fn new() -> Self {
        Self::for_caller(Caller::root())
    }

    /// The same, called by others than root.
    ///
    /// # Panics
    ///
    /// As said.
    #[must_use]
    pub fn for_caller(caller: Caller) -> Self {
        let root = tempfile::Builder::new().prefix("state").tempdir_in("/run").expect("a state directory");
        caller.chown(root.path());
        Self { before: HostSnapshot::take(), root, caller }
    }

    /// Its state directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// A command line of it.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.caller.command(&self.caller.runtime());
        command.arg("--root").arg(self.root()).args(arguments);
        command
    }

    /// Runs a command line of it to its end.
    #[must_use]
    pub fn call(&self, arguments: &[&str]) -> CommandResult {
        RunningCommand::start(&mut self.command(arguments), None).end()
    }

    /// `run` of a bundle in the foreground, with an id of its own.
    #[must_use]
    pub fn run(&self, bundle: &Bundle) -> CommandResult {
        self.run_command(bundle, None).end()
    }

    /// The same with something to read.
    #[must_use]
    pub fn run_with_input(&self, bundle: &Bundle, input: Vec<u8>) -> CommandResult {
        self.run_command(bundle, Some(input)).end()
    }

    fn run_command(&self, bundle: &Bundle, input: Option<Vec<u8>>) -> RunningCommand {
        RunningCommand::start(self.command(&["run", "--bundle"]).arg(bundle.path()).arg(new_id()), input)
    }

    /// `create` and `start` of a bundle, its output thrown away.
    ///
    /// # Panics
    ///
    /// Where one of them fails.
    #[must_use]
    pub fn start_container<'a>(&'a self, bundle: &'a Bundle) -> Container<'a> {
        let container = self.create_container(bundle);
        container.call("start", &[]).ok();
        container
    }

    /// `create` of a bundle, its output thrown away.
    ///
    /// # Panics
    ///
    /// Where it fails.
    #[must_use]
    pub fn create_container<'a>(&'a self, bundle: &'a Bundle) -> Container<'a> {
        let id = new_id();
        let mut command = self.command(&["create", "--bundle"]);
        // A container keeps its streams: with pipes here, waiting for their end would be waiting for the container's.
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

    /// Panics unless the machine is as it was before.
    ///
    /// # Panics
    ///
    /// As said.
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
                // The test has failed already; a second panic would hide why.
                let _ = deletion.map(|mut child| eventually(TIMEOUT, || child.try_wait().ok().flatten()));
            }
        } else {
            self.assert_clean();
        }
    }
}

/// An id no other test uses.
#[must_use]
pub fn new_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A container; deleted by force when dropped.
pub struct Container<'a> {
    runtime: &'a Runtime,
    /// What it was made from, which has to be there as long as it is.
    pub bundle: &'a Bundle,
    /// Its id.
    pub id: String,
}

impl Container<'_> {
    /// Runs a sub-command on it, with these arguments behind its id.
    #[must_use]
    pub fn call(&self, name: &str, arguments: &[&str]) -> CommandResult {
        self.runtime.call(&[&[name, &self.id], arguments].concat())
    }

    /// Executes a process in it and waits for its end.
    #[must_use]
    pub fn exec(&self, arguments: &[&str]) -> CommandResult {
        self.call("exec", arguments)
    }

    /// Executes a shell script in it.
    #[must_use]
    pub fn script(&self, script: &str) -> CommandResult {
        self.exec(&["sh", "-c", script])
    }

    /// What `state` says.
    ///
    /// # Panics
    ///
    /// Where that is not JSON.
    #[must_use]
    pub fn state(&self) -> Value {
        serde_json::from_slice(&self.call("state", &[]).ok().stdout).expect("state prints JSON")
    }

    /// Its status, as `running`.
    #[must_use]
    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap_or_default().to_string()
    }

    /// Its process on the host.
    ///
    /// # Panics
    ///
    /// Where there is none.
    #[must_use]
    pub fn pid(&self) -> i32 {
        let pid = self.state()["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        pid.expect("state has a pid")
    }

    /// Waits until it has this status.
    ///
    /// # Panics
    ///
    /// Where it takes too long.
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
