//! Podman, which has no daemon: conmon monitors vmrt's process.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::caller::{DelegatedCgroup, USER};
use vmrt_tests::host_snapshot::HostSnapshot;
use vmrt_tests::installed::{copy_deployed, runtime_path};
use vmrt_tests::rootless_namespaces::RootlessNamespaces;
use vmrt_tests::runtime::{CommandResult, RunningCommand, new_id};

use crate::Test;
use crate::daemons::{IMAGE, pack_rootfs};
use crate::docker::CLEAN_TIMEOUT;
use crate::docker::network::page;

pub const TESTS: &[Test] = &[
    ("run_logs_exec_and_stop_work", run_logs_exec_and_stop_work),
    ("a_container_runs_without_root", a_container_runs_without_root),
    ("streams_and_exit_status_are_the_containers", streams_and_exit_status_are_the_containers),
];

/// Podman with separate directories.
struct Podman {
    storage: TempDir,
    run: TempDir,
}

fn podman() -> &'static Podman {
    static PODMAN: OnceLock<Podman> = OnceLock::new();
    PODMAN.get_or_init(Podman::new)
}

impl Podman {
    /// Runs a container once: Podman then makes some directories, and keeps them.
    fn new() -> Self {
        let storage = tempfile::tempdir().expect("a directory for images");
        let run = tempfile::Builder::new().prefix("podman").tempdir_in("/run").expect("a directory for state");
        copy_deployed("podman/containers.conf", "/etc/containers/containers.conf.d/vmrt.conf");
        let podman = Self { storage, run };
        let archive = podman.storage.path().join("rootfs.tar");
        pack_rootfs(&archive);
        podman.call(&["import", archive.to_str().expect("a path"), IMAGE]).ok();
        podman.call(&["run", "--rm", IMAGE, "true"]).ok();
        podman
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command.arg("--root").arg(self.storage.path().join("storage")).arg("--runroot").arg(self.run.path());
        command.arg("--tmpdir").arg(self.run.path().join("libpod"));
        command.args(["--runtime", "vmrt", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]).args(arguments);
        command
    }

    fn call(&self, arguments: &[&str]) -> CommandResult {
        RunningCommand::start(&mut self.command(arguments), None).end()
    }
}

/// Podman without root: in a user namespace, with a delegated cgroup.
fn a_container_runs_without_root() {
    let (delegated, namespaces) = (DelegatedCgroup::new(), RootlessNamespaces::new());
    let caller = namespaces.root().within(&delegated);
    let (home, bundle) = (tempfile::tempdir().expect("a directory"), Bundle::busybox(["true"]));
    let given =
        Command::new("chown").args(["-R", &format!("{USER}:{USER}")]).args([home.path(), bundle.path()]).status();
    assert!(given.expect("chown runs").success(), "the user has directories");
    let before = HostSnapshot::take();
    let mut command = caller.command(Path::new("podman"));
    for (option, name) in [("--root", "storage"), ("--runroot", "run"), ("--tmpdir", "libpod")] {
        command.arg(option).arg(home.path().join(name));
    }
    command.arg("--runtime").arg(runtime_path()).args(["--storage-driver", "vfs"]);
    command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
    command.args(["run", "--rm", "--network", "none", "--cgroup-parent", DelegatedCgroup::PATH, "--memory", "64m"]);
    command.arg("--rootfs").arg(bundle.path().join("rootfs"));
    command.args(["sh", "-c", "id -u; echo >/made; cat /sys/fs/cgroup/memory.max; exit 7"]);
    // The variables that Podman sets after it has created its user namespace.
    let user = USER.to_string();
    command.env("_CONTAINERS_USERNS_CONFIGURED", "1").env("_CONTAINERS_ROOTLESS_UID", &user);
    command.env("_CONTAINERS_ROOTLESS_GID", &user).env("HOME", home.path()).env("XDG_RUNTIME_DIR", home.path());
    let done = RunningCommand::start(&mut command, None).end();
    assert_eq!((done.code, done.text()), (7, "0\n67108864".into()), "{done:?}");
    assert_eq!(bundle.file("made").metadata().expect("a file").uid(), USER);
    before.assert_restored(CLEAN_TIMEOUT, |_| false);
}

fn streams_and_exit_status_are_the_containers() {
    let podman = podman();
    let before = HostSnapshot::take();
    let mut command = podman.command(&["run", "--rm", "--interactive", IMAGE, "sh", "-c", "cat; echo err >&2; exit 7"]);
    let done = RunningCommand::start(&mut command, Some(b"typed\n".to_vec())).end();
    assert_eq!((done.code, done.text(), done.message()), (7, "typed".into(), "err".into()));
    before.assert_restored(CLEAN_TIMEOUT, |_| false);
}

fn run_logs_exec_and_stop_work() {
    let podman = podman();
    let (name, before) = (new_id(), HostSnapshot::take());
    let script =
        "trap 'exit 9' TERM; echo ready; echo served >/index.html; httpd -p 80 -h /; while :; do sleep 0.1; done";
    podman.call(&["run", "--detach", "--name", &name, "--publish", "8081:80", IMAGE, "sh", "-c", script]).ok();
    assert_eq!(page("127.0.0.1:8081"), "served\n");
    assert_eq!(podman.call(&["logs", &name]).ok().text(), "ready");
    let exec = podman.call(&["exec", &name, "sh", "-c", "ps; exit 5"]);
    assert!(exec.code == 5 && exec.text().contains("httpd -p 80"), "{exec:?}");
    podman.call(&["stop", "--time", "60", &name]).ok();
    let state = podman.call(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", &name]).ok().text();
    assert_eq!(state, "exited 9");
    podman.call(&["rm", &name]).ok();
    before.assert_restored(CLEAN_TIMEOUT, |_| false);
}
