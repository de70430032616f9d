//! containerd and dockerd, started by the first test that needs them, with everything of theirs in directories of their own.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use vmrt_tests::bundle::templates;
use vmrt_tests::runtime::{Done, Running, program, wait};
use vmrt_tests::{PATIENCE, eventually};

static DAEMONS: OnceLock<Daemons> = OnceLock::new();

/// The image all tests use, made of the busybox bundle.
pub const IMAGE: &str = "busybox";

/// The daemons, running.
pub struct Daemons {
    /// Images and containers: on a file system that overlayfs can be on.
    storage: TempDir,
    /// Sockets and state.
    run: TempDir,
    containerd: Mutex<Child>,
    dockerd: Mutex<Child>,
}

/// The daemons that all tests share.
pub fn daemons() -> &'static Daemons {
    DAEMONS.get_or_init(Daemons::start)
}

/// Stops them, if there are any.
pub fn stop() {
    if let Some(daemons) = DAEMONS.get() {
        end(&mut daemons.dockerd.lock().unwrap_or_else(PoisonError::into_inner));
        end(&mut daemons.containerd.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The path of the runtime under test: engines want one.
pub fn runtime_path() -> String {
    let found = Command::new("sh").args(["-c", "command -v \"$0\"", &program()]).output().expect("sh starts");
    String::from_utf8(found.stdout).expect("a path").trim().to_string()
}

/// Packs the root file system of the busybox bundle.
pub fn pack_rootfs(archive: &Path) {
    let mut tar = Command::new("tar");
    tar.arg("--create").arg("--file").arg(archive).arg("--directory").arg(templates().join("busybox/rootfs")).arg(".");
    assert!(tar.status().expect("tar starts").success(), "the root file system was packed");
}

impl Daemons {
    fn start() -> Self {
        let storage = tempfile::tempdir().expect("a directory for images");
        let run = tempfile::Builder::new().prefix("engines").tempdir_in("/run").expect("a directory for sockets");
        let containerd = Mutex::new(containerd(storage.path(), run.path()));
        let dockerd = Mutex::new(dockerd(storage.path(), run.path()));
        let daemons = Self { storage, run, containerd, dockerd };
        daemons.make_image();
        daemons
    }

    /// And runs it once: engines make some of their directories when they need them first.
    fn make_image(&self) {
        let archive = self.storage.path().join("rootfs.tar");
        pack_rootfs(&archive);
        let archive = archive.to_str().expect("a path");
        self.docker(&["import", archive, IMAGE]).ok();
        self.docker(&["run", "--rm", "--runtime", "vmrt", IMAGE, "true"]).ok();
    }

    /// A directory that lasts as long as the daemons.
    pub fn storage(&self) -> &Path {
        self.storage.path()
    }

    /// A command line of Docker's client.
    pub fn docker_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.arg("--host").arg(format!("unix://{}", self.socket("docker").display())).args(arguments);
        command.env("DOCKER_CONFIG", self.storage.path());
        command
    }

    /// Runs a command line of Docker's client to its end.
    pub fn docker(&self, arguments: &[&str]) -> Done {
        Running::start(&mut self.docker_command(arguments), None).end()
    }

    /// Runs a command line of containerd's client to its end.
    pub fn ctr(&self, arguments: &[&str]) -> Done {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.socket("containerd")).args(arguments);
        Running::start(&mut command, None).end()
    }

    /// Ends dockerd, which leaves its containers alone, and starts another one.
    pub fn restart_dockerd(&self, meanwhile: impl FnOnce()) {
        let mut child = self.dockerd.lock().expect("no test failed here");
        end(&mut child);
        meanwhile();
        *child = dockerd(self.storage.path(), self.run.path());
    }

    fn socket(&self, name: &str) -> PathBuf {
        socket(self.run.path(), name)
    }
}

fn socket(run: &Path, name: &str) -> PathBuf {
    run.join(name).with_extension("sock")
}

fn containerd(storage: &Path, run: &Path) -> Child {
    let socket = socket(run, "containerd");
    let mut command = daemon("containerd", storage);
    command.arg("--root").arg(storage.join("containerd")).arg("--state").arg(run.join("containerd"));
    command.arg("--address").arg(&socket);
    started(&mut command, &socket)
}

fn dockerd(storage: &Path, run: &Path) -> Child {
    let socket = socket(run, "docker");
    let mut command = daemon("dockerd", storage);
    command.arg("--host").arg(format!("unix://{}", socket.display()));
    command.arg("--containerd").arg(self::socket(run, "containerd"));
    command.arg("--data-root").arg(storage.join("docker")).arg("--exec-root").arg(run.join("docker"));
    command.arg("--pidfile").arg(run.join("docker.pid")).arg("--add-runtime").arg(format!("vmrt={}", runtime_path()));
    command.args(["--live-restore", "--storage-driver", "overlay2"]);
    started(&mut command, &socket)
}

/// A daemon that does not outlive the tests, and writes what it says to a file.
fn daemon(name: &str, storage: &Path) -> Command {
    let log = File::options().create(true).append(true).open(storage.join(name).with_extension("log"));
    let log = log.expect("a file for the daemon's messages");
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", name]);
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
    command
}

fn started(command: &mut Command, socket: &Path) -> Child {
    let mut child = command.spawn().expect("the daemon starts");
    let answers = eventually(PATIENCE, || {
        let ended = child.try_wait().expect("a child was waited for");
        assert!(ended.is_none(), "{command:?} ended: {ended:?}");
        UnixStream::connect(socket).ok()
    });
    assert!(answers.is_some(), "{command:?} does not listen on {}", socket.display());
    child
}

fn end(daemon: &mut Child) {
    let pid = Pid::from_raw(i32::try_from(daemon.id()).expect("a pid"));
    kill(pid, Signal::SIGTERM).expect("the daemon runs");
    wait(daemon);
}
