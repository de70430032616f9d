//! Podman, which has no daemon: conmon watches over vmrt's process.

use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;
use vmrt_tests::census::Census;
use vmrt_tests::runtime::{Done, Running, new_id};

use crate::Test;
use crate::daemons::{IMAGE, pack_rootfs, runtime_path};
use crate::docker::CLEAN_PATIENCE;
use crate::docker::network::page;

pub const TESTS: &[Test] = &[
    ("a_container_is_run_looked_into_and_stopped", a_container_is_run_looked_into_and_stopped),
    ("streams_and_status_are_the_containers", streams_and_status_are_the_containers),
];

/// Podman with directories of its own.
struct Podman {
    storage: TempDir,
    run: TempDir,
}

fn podman() -> &'static Podman {
    static PODMAN: OnceLock<Podman> = OnceLock::new();
    PODMAN.get_or_init(Podman::new)
}

impl Podman {
    /// Runs a container once: some directories are made then, and stay.
    fn new() -> Self {
        let storage = tempfile::tempdir().expect("a directory for images");
        let run = tempfile::Builder::new().prefix("podman").tempdir_in("/run").expect("a directory for state");
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
        command.arg("--tmpdir").arg(self.run.path().join("libpod")).arg("--runtime").arg(runtime_path());
        command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "file"]).args(arguments);
        command
    }

    fn call(&self, arguments: &[&str]) -> Done {
        Running::start(&mut self.command(arguments), None).end()
    }
}

fn streams_and_status_are_the_containers() {
    let podman = podman();
    let before = Census::take();
    let mut command = podman.command(&["run", "--rm", "--interactive", IMAGE, "sh", "-c", "cat; echo err >&2; exit 7"]);
    let done = Running::start(&mut command, Some(b"typed\n".to_vec())).end();
    assert_eq!((done.code, done.text(), done.message()), (7, "typed".into(), "err".into()));
    before.assert_restored(CLEAN_PATIENCE, |_| false);
}

fn a_container_is_run_looked_into_and_stopped() {
    let podman = podman();
    let (name, before) = (new_id(), Census::take());
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
    before.assert_restored(CLEAN_PATIENCE, |_| false);
}
