//! containerd's runc shim, driven by `ctr`, with vmrt in place of runc.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vmrt_tests::host_snapshot::HostSnapshot;
use vmrt_tests::{TIMEOUT, eventually};

use crate::Test;
use crate::daemons::{Daemons, IMAGE, daemons, runtime_path};
use crate::docker::CLEAN_TIMEOUT;

pub const TESTS: &[Test] = &[
    ("run_exec_kill_and_delete", run_exec_kill_and_delete),
    ("a_killed_shim_leaves_nothing", a_killed_shim_leaves_nothing),
];

fn import(daemons: &Daemons) -> String {
    let archive = daemons.storage().join("image.tar");
    let archive = archive.to_str().expect("a path");
    daemons.docker(&["save", "--output", archive, IMAGE]).ok();
    daemons.containerd.ctr(&["images", "import", archive]).ok();
    daemons.containerd.ctr(&["images", "list", "--quiet"]).ok().text()
}

fn status(daemons: &Daemons, container: &str) -> String {
    let list = daemons.containerd.ctr(&["tasks", "list"]).ok().text();
    let line = list.lines().find(|line| line.starts_with(container));
    line.and_then(|line| line.split_whitespace().last()).unwrap_or_default().to_string()
}

fn run_exec_kill_and_delete() {
    let daemons = daemons();
    let image = import(daemons);
    let runtime = runtime_path();
    let done = daemons.containerd.ctr(&[
        "run",
        "--rm",
        "--runc-binary",
        &runtime,
        &image,
        "one",
        "sh",
        "-c",
        "echo ran; exit 6",
    ]);
    assert_eq!((done.code, done.text().as_str()), (6, "ran"), "{done:?}");

    // Take the snapshot now: containerd has made some directories for its first container.
    let before = HostSnapshot::take();
    daemons.containerd.ctr(&["run", "--detach", "--runc-binary", &runtime, &image, "two", "sleep", "1000"]).ok();
    assert_eq!(status(daemons, "two"), "RUNNING");
    let exec = daemons.containerd.ctr(&["tasks", "exec", "--exec-id", "other", "two", "sh", "-c", "ps; exit 4"]);
    assert!(exec.code == 4 && exec.text().contains("sleep 1000"), "{exec:?}");
    let metrics = daemons.containerd.ctr(&["tasks", "metrics", "two"]).ok().text();
    let used = metrics.lines().find_map(|line| line.strip_prefix("memory.usage ")).expect("a line").trim().to_string();
    assert!(used.parse::<u64>().expect("a number") > 1 << 20, "{metrics}");
    daemons.containerd.ctr(&["tasks", "kill", "--signal", "KILL", "two"]).ok();
    let stopped = eventually(TIMEOUT, || (status(daemons, "two") == "STOPPED").then_some(()));
    assert!(stopped.is_some(), "it is {}", status(daemons, "two"));
    let removed = daemons.containerd.ctr(&["tasks", "delete", "two"]);
    assert!(removed.message().contains("137"), "{removed:?}");
    daemons.containerd.ctr(&["containers", "delete", "two"]).ok();

    before.assert_restored(CLEAN_TIMEOUT, is_of_namespace);
}

/// Whether a leftover is the cgroup of ctr's namespace, which the shim keeps with any runtime.
fn is_of_namespace(line: &str) -> bool {
    line.starts_with("cgroup /sys/fs/cgroup/default")
}

/// The pid of a container's shim.
fn shim(container: &str) -> Option<i32> {
    let is_shim = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        words[0].ends_with(b"containerd-shim-runc-v2") && words.contains(&container.as_bytes())
    };
    let pids =
        fs::read_dir("/proc").expect("processes").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.into_iter().find(is_shim)
}

fn a_killed_shim_leaves_nothing() {
    let daemons = daemons();
    let image = import(daemons);
    let before = HostSnapshot::take();
    let runtime = runtime_path();
    daemons.containerd.ctr(&["run", "--detach", "--runc-binary", &runtime, &image, "three", "sleep", "1000"]).ok();
    assert_eq!(status(daemons, "three"), "RUNNING");
    let shim = shim("three").expect("a shim");
    kill(Pid::from_raw(shim), Signal::SIGKILL).expect("the shim is killed");
    // containerd finds that the shim has ended, and has the runtime delete the container.
    let gone = eventually(TIMEOUT, || status(daemons, "three").is_empty().then_some(()));
    assert!(gone.is_some(), "it is {}", status(daemons, "three"));
    daemons.containerd.ctr(&["containers", "delete", "three"]).ok();
    // The streams and the socket of a killed shim are containerd's, which leaves them with any runtime.
    let is_of_shim = |line: &str| line.contains("/containerd/fifo") || line.contains("/containerd/s/");
    before.assert_restored(CLEAN_TIMEOUT, |line| is_of_namespace(line) || is_of_shim(line));
}
