//! Docker, with vmrt as one of its runtimes.

pub mod devices;
pub mod files;
pub mod lifecycle;
pub mod limits;
pub mod network;
pub mod process;
pub mod run;

use std::process::Command;
use std::thread;
use std::time::Duration;

use vmrt_tests::host_snapshot::HostSnapshot;
use vmrt_tests::runtime::{CommandResult, RunningCommand, new_id};
use vmrt_tests::{TIMEOUT, eventually};

use crate::daemons::{Daemons, IMAGE, daemons};

/// The longest time after the last container until nothing of it is left on the machine.
pub const CLEAN_TIMEOUT: Duration = Duration::from_secs(20);

/// State of dockerd itself. A restarted dockerd is another process with other sockets, and it removes the files
/// of network namespaces a minute after their containers end.
const DOCKERD_STATE: [&str; 4] = [" dockerd ", "/docker/netns/", "/docker/libnetwork/", "socket @"];

/// Docker in a test. When it is dropped, it checks that the test has left nothing behind.
pub struct Docker {
    daemons: &'static Daemons,
    before: HostSnapshot,
}

impl Docker {
    pub fn new() -> Self {
        let daemons = daemons();
        Self { daemons, before: HostSnapshot::take() }
    }

    /// Runs a command of Docker's client to its end.
    pub fn call(&self, arguments: &[&str]) -> CommandResult {
        self.daemons.docker(arguments)
    }

    /// A `run` command with vmrt: options, and the container's command line.
    pub fn run_command(&self, options: &[&str], words: &[&str]) -> Command {
        self.daemons.docker_command(&[&["run", "--runtime", "vmrt"], options, &[IMAGE], words].concat())
    }

    /// Runs a shell script with `run --rm`.
    pub fn script(&self, options: &[&str], script: &str) -> CommandResult {
        let options = [&["--rm"], options].concat();
        RunningCommand::start(&mut self.run_command(&options, &["sh", "-c", script]), None).end()
    }

    /// Runs a shell script with `run --detach` and a new name.
    pub fn detached(&self, options: &[&str], script: &str) -> DockerContainer<'_> {
        let name = new_id();
        let options = [&["--detach", "--name", &name], options].concat();
        RunningCommand::start(&mut self.run_command(&options, &["sh", "-c", script]), None).end().ok();
        DockerContainer { docker: self, name }
    }

    /// The container with this name, which ran in the foreground.
    pub fn named(&self, name: &str) -> DockerContainer<'_> {
        DockerContainer { docker: self, name: name.to_string() }
    }

    /// Restarts dockerd.
    pub fn restart(&self, meanwhile: impl FnOnce()) {
        self.daemons.restart_dockerd(meanwhile);
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        self.before.assert_restored(CLEAN_TIMEOUT, |line| DOCKERD_STATE.iter().any(|own| line.contains(own)));
    }
}

/// A container of Docker; removed by force when dropped.
pub struct DockerContainer<'a> {
    docker: &'a Docker,
    pub name: String,
}

impl DockerContainer<'_> {
    /// Runs a command on the container, with these arguments before and after its name.
    pub fn call(&self, before: &[&str], behind: &[&str]) -> CommandResult {
        self.docker.call(&[before, &[&self.name], behind].concat())
    }

    /// Executes a shell script in the container.
    pub fn exec(&self, script: &str) -> CommandResult {
        self.call(&["exec"], &["sh", "-c", script])
    }

    /// The container's standard output.
    pub fn logs(&self) -> String {
        self.call(&["logs"], &[]).ok().text()
    }

    /// Waits until the container has written this text.
    pub fn await_log(&self, wanted: &str) {
        let found = eventually(TIMEOUT, || self.logs().contains(wanted).then_some(()));
        assert!(found.is_some(), "{wanted:?} is not in {:?}", self.logs());
    }

    /// A part of the output of `inspect`, by its template.
    pub fn inspect(&self, part: &str) -> String {
        self.call(&["inspect", "--format", &format!("{{{{{part}}}}}")], &[]).ok().text()
    }

    /// Waits until a part of the output of `inspect` has this value.
    pub fn await_state(&self, part: &str, wanted: &str) {
        let found = eventually(TIMEOUT, || (self.inspect(part) == wanted).then_some(()));
        assert!(found.is_some(), "{part} is {}, not {wanted}", self.inspect(part));
    }
}

impl Drop for DockerContainer<'_> {
    fn drop(&mut self) {
        let done = self.call(&["rm", "--force", "--volumes"], &[]);
        assert!(thread::panicking() || done.code == 0, "rm --force: {done:?}");
    }
}
