//! Starts containerd and dockerd with the files of `deploy/`, and with all their state in separate directories.

use std::env;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::installed::{deploy_file, install};
use crate::runtime::{CommandResult, RunningCommand, wait};
use crate::{TIMEOUT, eventually};

/// The name of the image that is made of the busybox bundle.
pub const IMAGE: &str = "busybox";

/// The `PATH` of the images.
pub const PATH_OF_IMAGES: &str = "ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin";

/// The kernel modules that the engines' networks need.
const MODULES: [&str; 9] = [
    "bridge",
    "veth",
    "nf_tables",
    "nft_compat",
    "nft_chain_nat",
    "xt_MASQUERADE",
    "xt_conntrack",
    "xt_addrtype",
    "br_netfilter",
];

/// The running daemons.
#[derive(Debug)]
pub struct Daemons {
    /// Images and containers, on a file system that supports overlayfs.
    storage: TempDir,
    /// Sockets and state.
    run: TempDir,
    /// The containerd that dockerd uses, too.
    pub containerd: Containerd,
    dockerd: Mutex<Child>,
}

/// Loads the kernel modules that the engines' networks need.
///
/// # Panics
/// They cannot be loaded.
pub fn load_modules() {
    let loaded = Command::new("modprobe").arg("--all").args(MODULES).status();
    assert!(loaded.expect("modprobe starts").success(), "the kernel's modules were loaded");
}

/// Moves this process, and so its engines, into a new network and mount namespace: bridges, packet filters and mounts end with it.
/// Installs the runtime under test as vmrt there.
///
/// # Panics
/// The host refuses.
pub fn isolate() {
    load_modules();
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("namespaces of our own");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("mounts of our own");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.expect("ip starts").success(), "the loopback is up");
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("packets are forwarded");
    install();
}

/// Packs a root file system.
///
/// # Panics
/// It cannot be packed.
pub fn pack_rootfs(rootfs: &Path, archive: &Path) {
    let mut tar = Command::new("tar");
    tar.arg("--create").arg("--file").arg(archive).arg("--directory").arg(rootfs).arg(".");
    assert!(tar.status().expect("tar starts").success(), "the root file system was packed");
}

impl Daemons {
    /// Starts the daemons, and makes [`IMAGE`] of a root file system.
    ///
    /// # Panics
    /// They do not start.
    #[must_use]
    pub fn start(rootfs: &Path) -> Self {
        let storage = tempfile::tempdir().expect("a directory for images");
        let run = tempfile::Builder::new().prefix("engines").tempdir_in("/run").expect("a directory for sockets");
        let config = deploy_file("kubernetes/containerd-1.toml");
        let containerd = Containerd::start(None, &config, storage.path(), run.path());
        let dockerd = Mutex::new(dockerd(storage.path(), run.path()));
        let daemons = Self { storage, run, containerd, dockerd };
        daemons.make_image(rootfs);
        daemons
    }

    /// Stops the daemons.
    pub fn stop(&self) {
        terminate(&mut self.dockerd.lock().unwrap_or_else(PoisonError::into_inner));
        self.containerd.stop();
    }

    /// Imports the image and runs it once: engines make some of their directories at the first use.
    fn make_image(&self, rootfs: &Path) {
        let archive = self.storage.path().join("rootfs.tar");
        pack_rootfs(rootfs, &archive);
        let archive = archive.to_str().expect("a path");
        self.docker(&["import", "--change", PATH_OF_IMAGES, archive, IMAGE]).ok();
        self.docker(&["run", "--rm", "--runtime", "vmrt", IMAGE, "true"]).ok();
    }

    /// A directory that exists as long as the daemons.
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
    pub fn docker(&self, arguments: &[&str]) -> CommandResult {
        RunningCommand::start(&mut self.docker_command(arguments), None).end()
    }

    /// Ends dockerd, calls `meanwhile`, and starts dockerd again. Its containers keep running.
    ///
    /// # Panics
    /// It does not end, or does not start.
    pub fn restart_dockerd(&self, meanwhile: impl FnOnce()) {
        let mut child = self.dockerd.lock().expect("no test failed here");
        terminate(&mut child);
        meanwhile();
        *child = dockerd(self.storage.path(), self.run.path());
    }

    fn socket(&self, name: &str) -> PathBuf {
        socket(self.run.path(), name)
    }
}

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    daemon: Mutex<Child>,
    socket: PathBuf,
    config: PathBuf,
    /// The `PATH` of containerd, its client and its shims.
    path: String,
}

impl Containerd {
    /// Starts the containerd of the directory `programs`, or else the machine's.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start(programs: Option<&str>, config: &Path, storage: &Path, run: &Path) -> Self {
        let path = env::var("PATH").expect("a path for programs");
        let path = programs.map_or_else(|| path.clone(), |programs| format!("{programs}:{path}"));
        let socket = socket(run, "containerd");
        let mut command = daemon("containerd", storage);
        command.arg("--root").arg(storage.join("containerd")).arg("--state").arg(run.join("containerd"));
        command.arg("--address").arg(&socket).arg("--config").arg(config).env("PATH", &path);
        let daemon = Mutex::new(spawn_and_await(&mut command, &socket));
        Self { daemon, socket, config: config.to_path_buf(), path }
    }

    /// Stops containerd.
    pub fn stop(&self) {
        terminate(&mut self.daemon.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The socket it listens on.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Runs a command line of its client to its end.
    pub fn ctr(&self, arguments: &[&str]) -> CommandResult {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&self.socket).args(arguments).env("PATH", &self.path);
        RunningCommand::start(&mut command, None).end()
    }

    /// The image that containerd uses for the sandboxes of pods.
    ///
    /// # Panics
    /// Its configuration does not name one.
    pub fn sandbox_image(&self) -> String {
        let mut command = Command::new("containerd");
        command.arg("--config").arg(&self.config).args(["config", "dump"]).env("PATH", &self.path);
        let text = RunningCommand::start(&mut command, None).end().ok().text();
        let settings = text.lines().filter_map(|line| line.trim().split_once(" = "));
        let image =
            settings.filter(|(key, _)| ["sandbox", "sandbox_image"].contains(key)).map(|(_, value)| value).next();
        image.expect("an image for sandboxes").trim_matches(['"', '\'']).to_string()
    }
}

fn socket(run: &Path, name: &str) -> PathBuf {
    run.join(name).with_extension("sock")
}

fn dockerd(storage: &Path, run: &Path) -> Child {
    let socket = socket(run, "docker");
    let mut command = daemon("dockerd", storage);
    command.arg("--host").arg(format!("unix://{}", socket.display()));
    command.arg("--containerd").arg(self::socket(run, "containerd"));
    command.arg("--data-root").arg(storage.join("docker")).arg("--exec-root").arg(run.join("docker"));
    command.arg("--pidfile").arg(run.join("docker.pid")).arg("--config-file").arg(deploy_file("docker/daemon.json"));
    command.args(["--live-restore", "--storage-driver", "overlay2"]);
    spawn_and_await(&mut command, &socket)
}

/// A command of a daemon that does not outlive the tests and writes its messages to a file.
fn daemon(name: &str, storage: &Path) -> Command {
    let log = File::options().create(true).append(true).open(storage.join(name).with_extension("log"));
    let log = log.expect("a file for the daemon's messages");
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", name]);
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
    command
}

/// Starts a daemon and waits until it listens.
fn spawn_and_await(command: &mut Command, socket: &Path) -> Child {
    let mut child = command.spawn().expect("the daemon starts");
    let answers = eventually(TIMEOUT, || {
        let ended = child.try_wait().expect("a child was waited for");
        assert!(ended.is_none(), "{command:?} ended: {ended:?}");
        UnixStream::connect(socket).ok()
    });
    assert!(answers.is_some(), "{command:?} does not listen on {}", socket.display());
    child
}

fn terminate(daemon: &mut Child) {
    let pid = Pid::from_raw(i32::try_from(daemon.id()).expect("a pid"));
    kill(pid, Signal::SIGTERM).expect("the daemon runs");
    wait(daemon);
}
