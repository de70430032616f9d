//! Containers that use up memory, processes or CPU time: everything else in the machine keeps working.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{CommandResult, Container, Runtime, is_vmrt, wait};

use crate::pods::{ALL, join_namespaces};

const MIB: u64 = 1 << 20;

/// A command that allocates more and more memory in small steps.
const ALLOCATE_ENDLESSLY: [&str; 2] = ["tail", "/dev/zero"];

/// The longest time for a command on a crowded machine in a slow test host. Without the agent's priority it takes minutes.
const MAX_DURATION: Duration = Duration::from_secs(30);

fn limited(bundle: Bundle, mib: u64) -> Bundle {
    bundle.with("/linux/resources/memory", json!({"limit": mib * MIB, "swap": mib * MIB}))
}

/// Calls `cause`, ends the container, and returns how many `oom` events `events` has printed meanwhile.
fn count_oom_events(runtime: &Runtime, container: &Container<'_>, cause: impl FnOnce()) -> usize {
    let mut command = runtime.command(&["events", "--interval", "200ms", &container.id]);
    let mut events = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines().map_while(Result::ok);
    lines.next().expect("events has begun");
    cause();
    // These statistics come after all earlier events.
    runtime.call(&["events", "--stats", &container.id]).ok();
    container.call("kill", &["KILL"]).ok();
    let oom_events = lines.filter(|line| serde_json::from_str::<Value>(line).unwrap()["type"] == "oom").count();
    assert_eq!(wait(&mut events), 0);
    oom_events
}

fn assert_in_time(what: &str, call: impl FnOnce() -> CommandResult) -> CommandResult {
    let begun = Instant::now();
    let done = call();
    let taken = begun.elapsed();
    assert!(taken < MAX_DURATION, "{what} took {taken:?}: {done:?}");
    done
}

#[test]
fn reserved_memory_does_not_count_until_it_is_used() {
    let runtime = Runtime::new();
    let reserve = |size: &str| format!("import mmap; a = mmap.mmap(-1, {size}); print('reserved')");
    let bundle = limited(Bundle::debian(["python3", "-c", &reserve("1 << 30")]), 128);
    assert_eq!(runtime.run(&bundle).ok().text(), "reserved");
    let bundle = limited(Bundle::debian(["python3", "-c", "a = bytearray(400 << 20); print('unreachable')"]), 128);
    let done = runtime.run(&bundle);
    assert_eq!((done.code, done.text().as_str()), (137, ""), "{done:?}");
}

#[test]
fn an_oom_kill_is_reported_once() {
    let runtime = Runtime::new();
    let bundle = limited(Bundle::busybox(["sleep", "1000"]), 64);
    let container = runtime.start_container(&bundle);
    let events = count_oom_events(&runtime, &container, || {
        // It is not the first process, so the container keeps running.
        assert_eq!(container.exec(&ALLOCATE_ENDLESSLY).code, 137);
        assert_eq!((container.status().as_str(), container.script("exit 4").code), ("running", 4));
    });
    assert_eq!(events, 1);
    assert_eq!(runtime.run(&limited(Bundle::busybox(ALLOCATE_ENDLESSLY), 64)).code, 137);
}

#[test]
fn an_oom_kill_without_a_limit_is_reported_for_its_container() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    let machine = || container.script("cat /proc/sys/kernel/random/boot_id; cat /sys/fs/cgroup/memory.max").ok().text();
    let before = machine();
    assert!(before.ends_with("\nmax"), "what it sees is no limit: {before}");
    let events = count_oom_events(&runtime, &container, || {
        assert_eq!(container.exec(&ALLOCATE_ENDLESSLY).code, 137);
        assert_eq!(container.status(), "running");
        assert_eq!(machine(), before);
    });
    assert_eq!(events, 1);
    assert_eq!(runtime.run(&Bundle::busybox(ALLOCATE_ENDLESSLY)).code, 137);
}

#[test]
fn a_tmpfs_that_uses_up_the_memory_causes_an_oom_kill() {
    let runtime = Runtime::new();
    let fill = "dd if=/dev/zero of=/full/file bs=1M 2>/dev/null; echo status=$?; rm /full/file; \
        dd if=/dev/zero of=/full/file bs=1M count=8 2>/dev/null; echo again=$?";
    let mount = json!({"type": "tmpfs", "source": "tmpfs", "destination": "/full", "options": ["size=100g"]});
    let bundle = || Bundle::script(fill).with("/mounts/-", mount.clone());
    let bundles = [Some(limited(bundle(), 64)), is_vmrt().then(bundle)];
    for bundle in bundles.into_iter().flatten() {
        let done = runtime.run(&bundle).ok();
        assert_eq!((done.value("status"), done.value("again")), ("137".into(), "0".into()), "{done:?}");
    }
}

#[test]
fn an_oom_kill_in_a_pod_is_reported_for_the_container_that_used_the_memory() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let sleeping = || Bundle::busybox(["sleep", "1000"]);
    let first_bundle = sleeping();
    let first = runtime.start_container(&first_bundle);
    for limit in [Some(64), None] {
        let bundle = join_namespaces(sleeping(), &first, &ALL);
        let bundle = limit.map_or_else(|| join_namespaces(sleeping(), &first, &ALL), |mib| limited(bundle, mib));
        let second = runtime.start_container(&bundle);
        let events = count_oom_events(&runtime, &second, || assert_eq!(second.exec(&ALLOCATE_ENDLESSLY).code, 137));
        assert_eq!(events, 1, "with limit {limit:?}");
    }
    assert_eq!(count_oom_events(&runtime, &first, || ()), 0);
}

#[test]
fn the_kernel_allows_four_million_processes() {
    let runtime = Runtime::new();
    let script = "echo pids=$(cat /proc/sys/kernel/pid_max); echo threads=$(cat /proc/sys/kernel/threads-max); \
        echo user=$(ulimit -u); echo cgroup=$(cat /sys/fs/cgroup/pids.max)";
    let bundle = Bundle::script(script).with("/process/user", json!({"uid": 1000, "gid": 1000}));
    let done = runtime.run(&bundle).ok();
    assert_eq!(done.value("cgroup"), "max");
    if is_vmrt() {
        let numbers = [done.value("pids"), done.value("threads"), done.value("user")];
        assert_eq!(numbers, ["4194304", "4194304", "2097152"]);
    }
}

#[test]
fn exec_and_kill_work_among_thousands_of_processes() {
    let runtime = Runtime::new();
    let fork_many = "import os, time\nfor i in range(2000):\n    if os.fork() == 0:\n        time.sleep(1000)\nprint('full', flush=True)\n\
        open('/dev/shm/full', 'w')\ntime.sleep(1000)";
    let bundle = Bundle::debian(["python3", "-c", fork_many]).with("/annotations/dev.vmrt.memory", json!("2G"));
    let container = runtime.start_container(&bundle);
    let full = "until [ -e /dev/shm/full ]; do sleep 1; done";
    container.script(full).ok();
    let count = assert_in_time("exec", || container.script("cat /sys/fs/cgroup/pids.current")).ok().text();
    assert!(count.parse::<u32>().unwrap() > 2000, "{count}");
    assert_in_time("kill", || container.call("kill", &["KILL"])).ok();
    container.await_status("stopped");
}

#[test]
fn a_fork_bomb_can_be_killed() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::script("bomb() { bomb | bomb & }; bomb; sleep 1000");
    let container = runtime.start_container(&bundle);
    std::thread::sleep(Duration::from_secs(20));
    assert_in_time("state", || container.call("state", &[])).ok();
    assert_in_time("kill", || container.call("kill", &["KILL"]));
    container.await_status("stopped");
}

#[test]
fn container_processes_have_default_scheduling_and_oom_score() {
    let runtime = Runtime::new();
    // Prints real-time priority, scheduling policy and OOM score.
    let script = "cut -d ' ' -f 40,41 /proc/self/stat; cat /proc/self/oom_score_adj";
    let bundle =
        Bundle::script(&format!("{{ {script}; }} >/first; exec sleep 1000")).with("/process/oomScoreAdj", json!(0));
    let container = runtime.start_container(&bundle);
    assert_eq!(container.script(script).ok().text(), "0 0\n0");
    bundle.await_file("first");
    assert_eq!(container.exec(&["cat", "/first"]).ok().text(), "0 0\n0");
}
