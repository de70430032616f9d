//! Limits of a container.

use vmrt_tests::runtime::{RunningCommand, new_id};

use super::Docker;
use crate::Test;

pub const TESTS: &[Test] = &[
    ("limits_hold_in_the_guest_and_follow_update", limits_hold_in_the_guest_and_follow_update),
    ("an_oom_kill_is_reported", an_oom_kill_is_reported),
];

const PRINT: &str = "echo memory=$(cat /sys/fs/cgroup/memory.max); echo cpu=$(cat /sys/fs/cgroup/cpu.max); \
    echo pids=$(cat /sys/fs/cgroup/pids.max); echo files=$(ulimit -n) $(ulimit -Hn); echo cpus=$(nproc)";

fn limits_hold_in_the_guest_and_follow_update() {
    let docker = Docker::new();
    let options = ["--memory", "96m", "--cpus", "0.5", "--pids-limit", "20", "--ulimit", "nofile=123:456"];
    let container = docker.detached(&options, "exec sleep 1000");
    let before = container.exec(PRINT).ok();
    assert_eq!((before.value("memory"), before.value("cpu")), ((96 << 20).to_string(), "50000 100000".into()));
    assert_eq!((before.value("pids"), before.value("files")), ("20".into(), "123 456".into()));

    container.call(&["update", "--memory", "64m", "--memory-swap", "64m", "--cpus", "0.25"], &[]).ok();
    let after = container.exec(PRINT).ok();
    assert_eq!((after.value("memory"), after.value("cpu")), ((64 << 20).to_string(), "25000 100000".into()));

    // The machine grows with the limits.
    container.call(&["update", "--memory", "1g", "--memory-swap", "1g", "--cpus", "1.5"], &[]).ok();
    let grown = container.exec(PRINT).ok();
    assert_eq!((grown.value("memory"), grown.value("cpu")), ((1 << 30).to_string(), "150000 100000".into()));
    assert_eq!((after.value("cpus"), grown.value("cpus")), ("1".into(), "2".into()));
    container.exec("dd if=/dev/zero of=/dev/null bs=400M count=1").ok();

    // This comes last: it leaves unreaped processes in the container, so no further process can be executed in it.
    let many = container.exec("i=0; while [ $i -lt 30 ]; do sleep 5 & i=$((i + 1)); done; wait");
    assert!(many.message().contains("can't fork"), "{many:?}");
}

fn an_oom_kill_is_reported() {
    let docker = Docker::new();
    let name = new_id();
    let mut command = docker.run_command(&["--memory", "64m", "--name", &name], &["tail", "/dev/zero"]);
    let done = RunningCommand::start(&mut command, None).end();
    let container = docker.named(&name);
    assert_eq!(done.code, 137, "{done:?}");
    assert_eq!(
        (container.inspect(".State.OOMKilled"), container.inspect(".State.ExitCode")),
        ("true".into(), "137".into())
    );
}
