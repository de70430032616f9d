//! Containers in the background: signals, stop, pause, restart and removal.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use std::{fs, thread};

use vmrt_tests::{TIMEOUT, eventually};

use super::Docker;
use crate::Test;

pub const TESTS: &[Test] = &[
    ("logs_exec_top_and_stats_work_on_a_running_container", logs_exec_top_and_stats_work_on_a_running_container),
    ("kill_and_stop_send_signals", kill_and_stop_send_signals),
    ("stop_kills_a_container_that_ignores_sigterm", stop_kills_a_container_that_ignores_sigterm),
    ("pause_stops_a_container_until_unpause", pause_stops_a_container_until_unpause),
    ("restart_policies_start_a_container_again", restart_policies_start_a_container_again),
    ("rm_force_removes_a_running_container", rm_force_removes_a_running_container),
    ("a_container_outlives_dockerd_with_live_restore", a_container_outlives_dockerd_with_live_restore),
];

/// A script that prints each signal it gets, and exits on SIGTERM.
const SIGNAL_SCRIPT: &str =
    "trap 'echo usr1' USR1; trap 'echo term; exit 9' TERM; echo ready; while :; do sleep 0.1; done";

fn logs_exec_top_and_stats_work_on_a_running_container() {
    let docker = Docker::new();
    let container = docker.detached(&[], "echo out; echo err >&2; exec sleep 1000");
    container.await_log("out");
    assert_eq!(container.call(&["logs"], &[]).ok().message(), "err");

    let done = container.call(&["exec", "--env", "A=b", "--workdir", "/etc"], &["sh", "-c", "echo $A; pwd; exit 3"]);
    assert_eq!((done.code, done.text().as_str()), (3, "b\n/etc"));
    let guest = container.exec("ps").ok().text();
    assert!(guest.lines().any(|line| line.contains(" 1 ") && line.ends_with("sleep 1000")), "{guest}");

    let top = container.call(&["top"], &[]).ok().text();
    let pid = container.inspect(".State.Pid");
    assert!(top.contains("vmrt-vmm") && top.contains(&pid), "{top}");
    let key = container.inspect(".NetworkSettings.SandboxKey");
    let inode = |path: &Path| fs::metadata(path).expect("a namespace").ino();
    assert_eq!(inode(Path::new(&key)), inode(&Path::new("/proc").join(pid).join("ns/net")));

    let stats = ["stats", "--no-stream", "--format", "{{.MemUsage}} {{.MemPerc}} {{.PIDs}}"];
    let stats = container.call(&stats, &[]).ok().text();
    let numbers: Vec<_> = stats.split_whitespace().collect();
    assert!(numbers[0].ends_with("MiB") && numbers[3] != "0.00%" && numbers[4] != "0", "{stats}");
}

fn kill_and_stop_send_signals() {
    let docker = Docker::new();
    let container = docker.detached(&[], SIGNAL_SCRIPT);
    container.await_log("ready");
    container.call(&["kill", "--signal", "USR1"], &[]).ok();
    container.await_log("usr1");
    container.call(&["stop", "--time", "60"], &[]).ok();
    container.await_state(".State.Status", "exited");
    assert_eq!((container.inspect(".State.ExitCode"), container.logs().as_str()), ("9".into(), "ready\nusr1\nterm"));

    container.call(&["start"], &[]).ok();
    container.await_state(".State.Status", "running");
    container.call(&["kill"], &[]).ok();
    container.await_state(".State.ExitCode", "137");
}

fn stop_kills_a_container_that_ignores_sigterm() {
    let docker = Docker::new();
    let container = docker.detached(&[], "trap '' TERM; echo ready; while :; do sleep 0.1; done");
    container.await_log("ready");
    container.call(&["stop", "--time", "1"], &[]).ok();
    assert_eq!(container.inspect(".State.ExitCode"), "137");
}

fn pause_stops_a_container_until_unpause() {
    let docker = Docker::new();
    let container = docker.detached(&[], "while :; do echo tick; sleep 0.1; done");
    container.await_log("tick");
    container.call(&["pause"], &[]).ok();
    assert_eq!(container.inspect(".State.Status"), "paused");
    // Wait for the output that was written before the pause.
    thread::sleep(Duration::from_millis(500));
    let before = container.logs();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(container.logs(), before);
    container.call(&["unpause"], &[]).ok();
    assert_eq!(container.inspect(".State.Status"), "running");
    let goes_on = eventually(TIMEOUT, || (container.logs().len() > before.len()).then_some(()));
    assert!(goes_on.is_some(), "it does not go on");
}

fn restart_policies_start_a_container_again() {
    let docker = Docker::new();
    let fails = docker.detached(&["--restart", "on-failure:1"], "echo started; exit 4");
    let ends = docker.detached(&["--restart", "always"], "echo started; sleep 1");
    ends.await_log("started\nstarted");
    fails.await_log("started\nstarted");
    fails.await_state(".State.Status", "exited");
    assert_eq!((fails.inspect(".RestartCount"), fails.inspect(".State.ExitCode")), ("1".into(), "4".into()));
}

fn rm_force_removes_a_running_container() {
    let docker = Docker::new();
    let container = docker.detached(&[], "exec sleep 1000");
    let pid = container.inspect(".State.Pid");
    container.call(&["rm", "--force"], &[]).ok();
    assert!(!Path::new("/proc").join(pid).exists());
    assert!(container.call(&["inspect"], &[]).code != 0);
}

fn a_container_outlives_dockerd_with_live_restore() {
    let docker = Docker::new();
    let container = docker.detached(&[], SIGNAL_SCRIPT);
    container.await_log("ready");
    let pid = container.inspect(".State.Pid");
    docker.restart(|| assert!(Path::new("/proc").join(&pid).exists(), "it ended with dockerd"));
    assert_eq!((container.inspect(".State.Status"), container.inspect(".State.Pid")), ("running".into(), pid));
    assert_eq!(container.exec("echo still there").ok().text(), "still there");
    container.call(&["kill", "--signal", "USR1"], &[]).ok();
    container.await_log("usr1");
    container.call(&["stop", "--time", "60"], &[]).ok();
    assert_eq!(container.inspect(".State.ExitCode"), "9");
}
