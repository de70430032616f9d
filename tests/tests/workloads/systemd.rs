//! systemd as the first process of a separate container.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;
use tempfile::TempDir;
use vmrt_tests::bundle::{Bundle, templates};
use vmrt_tests::runtime::{CommandResult, RunningCommand, Runtime, new_id};
use vmrt_tests::{TIMEOUT, eventually};

/// The longest time for systemd to reach `running` on a slow host.
const SYSTEMD_TIMEOUT: Duration = Duration::from_secs(300);

/// Units of the Debian that belong to other workloads.
const MASKED: [&str; 11] = [
    "containerd.service",
    "docker.service",
    "docker.socket",
    "podman-auto-update.service",
    "podman-auto-update.timer",
    "podman-restart.service",
    "podman.service",
    "podman.socket",
    "postgresql.service",
    "redis-server.service",
    "systemd-networkd-wait-online.service",
];

/// The Debian under an overlay, so that systemd does not change it.
struct Overlay(TempDir);

impl Overlay {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory for the overlay");
        let of = |name: &str| directory.path().join(name);
        for name in ["upper", "work", "root"] {
            fs::create_dir(of(name)).expect("a directory of the overlay");
        }
        let [lower, upper, work] = [templates().join("debian"), of("upper"), of("work")];
        let data = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        mount(Some("overlay"), &of("root"), Some("overlay"), MsFlags::empty(), Some(&*data)).expect("an overlay");
        Self(directory)
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("root")
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let unmounted = umount2(&self.root(), MntFlags::empty());
        assert!(unmounted.is_ok() || thread::panicking(), "{unmounted:?}");
    }
}

fn bundle(root: &Path) -> Bundle {
    let masks = MASKED.map(|unit| format!("systemd.mask={unit}"));
    let arguments = ["/lib/systemd/systemd"].into_iter().chain(masks.iter().map(String::as_str));
    let tmpfs = |destination: &str| json!({"type": "tmpfs", "source": "tmpfs", "destination": destination, "options": ["nosuid", "nodev", "mode=755"]});
    Bundle::debian(arguments)
        .privileged()
        .with("/root/path", json!(root))
        .with("/root/readonly", json!(false))
        .with("/process/env/-", json!("container=docker"))
        .with("/mounts/-", tmpfs("/run"))
        .with("/mounts/-", tmpfs("/run/lock"))
        .with("/mounts/-", tmpfs("/tmp"))
        // The host's size, which systemd has with runc.
        .with("/annotations/dev.vmrt.memory", json!("1G"))
        .with("/annotations/dev.vmrt.vcpus", json!("2"))
}

/// The result of systemd's start.
pub struct Boot {
    /// `running`, `degraded` and so on.
    pub state: String,
    /// The units that failed.
    pub failed: String,
    /// The time from the command that makes the container to the end of systemd's start.
    pub duration: Duration,
}

/// Boots systemd with the runtime `program`.
pub fn boot(program: &str) -> Boot {
    let host = Runtime::new();
    let overlay = Overlay::new();
    let bundle = bundle(&overlay.root());
    let id = new_id();
    let call = |arguments: &[&str]| {
        let mut command = Command::new(program);
        command.arg("--root").arg(host.root()).args(arguments);
        RunningCommand::start(&mut command, None)
    };
    let start = Instant::now();
    let path = bundle.path().to_str().expect("a path of text");
    let container = call(&["run", "--bundle", path, &id]);
    let systemctl = |arguments: &[&str]| -> CommandResult {
        call(&[&["exec", &id, "systemctl"], arguments].concat()).end_within(SYSTEMD_TIMEOUT)
    };
    // systemctl fails, or prints `offline`, until systemd listens on its socket.
    let asked = eventually(TIMEOUT, || {
        let done = systemctl(&["is-system-running", "--wait"]);
        (!done.text().is_empty() && done.text() != "offline").then_some(done)
    });
    let duration = start.elapsed();
    let state = asked.map(|done| done.text()).unwrap_or_default();
    let failed = systemctl(&["list-units", "--failed", "--plain", "--no-legend"]).text();
    call(&["delete", "--force", &id]).end().ok();
    // The foreground command exits with the status of a killed process.
    assert_eq!(container.end().code, 137, "{program}");
    Boot { state, failed, duration }
}
