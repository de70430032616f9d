//! cgroup limits, seen from inside the container.

use serde_json::json;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Container, Runtime, is_vmrt};

const MIB: u64 = 1 << 20;

fn limited(bundle: Bundle) -> Bundle {
    bundle
        .with("/linux/resources/memory", json!({"limit": 64 * MIB, "swap": 64 * MIB}))
        .with("/linux/resources/cpu", json!({"quota": 50_000, "period": 100_000, "shares": 512}))
        .with("/linux/resources/pids", json!({"limit": 20}))
}

#[test]
fn limits_are_visible_in_the_containers_cgroup() {
    let runtime = Runtime::new();
    let script = "cd /sys/fs/cgroup; echo memory=$(cat memory.max); echo cpu=$(cat cpu.max); echo pids=$(cat pids.max); \
        echo weight=$(cat cpu.weight); echo swap=$(cat memory.swap.max 2>/dev/null || echo 0); echo self=$(cat /proc/self/cgroup); \
        echo kind=$(stat -f -c %t .); touch x 2>/dev/null && echo locked=no || echo locked=yes";
    let done = runtime.run(&limited(Bundle::script(script))).ok();
    done.assert_values(&[
        ("memory", "67108864"),
        ("cpu", "50000 100000"),
        ("pids", "20"),
        ("weight", "20"),
        ("swap", "0"),
        ("self", "0::/"),
        ("kind", "63677270"),
        ("locked", "yes"),
    ]);
}

#[test]
fn every_limit_of_the_specification_sets_its_cgroup_file() {
    let runtime = Runtime::new();
    let script = "cd /sys/fs/cgroup; for file in memory.low memory.high memory.oom.group cpu.max cpu.max.burst \
        hugetlb.2MB.max io.weight; do echo $file=$(cat $file); done";
    let bundle = Bundle::script(script)
        .with("/linux/resources/memory", json!({"limit": 64 * MIB, "reservation": 16 * MIB}))
        .with("/linux/resources/cpu", json!({"quota": 50_000, "period": 100_000, "burst": 20_000}))
        .with("/linux/resources/hugepageLimits", json!([{"pageSize": "2MB", "limit": 4 * MIB}]))
        .with("/linux/resources/blockIO", json!({"weight": 500}))
        .with("/linux/resources/unified", json!({"memory.high": "50331648", "memory.oom.group": "1"}));
    let done = runtime.run(&bundle).ok();
    done.assert_values(&[
        ("memory.low", "16777216"),
        ("memory.high", "50331648"),
        ("memory.oom.group", "1"),
        ("cpu.max", "50000 100000"),
        ("cpu.max.burst", "20000"),
        ("hugetlb.2MB.max", "4194304"),
        ("io.weight", "default 4950"),
    ]);
    let idle = Bundle::busybox(["cat", "/sys/fs/cgroup/cpu.idle"]).with("/linux/resources/cpu", json!({"idle": 1}));
    assert_eq!(runtime.run(&idle).ok().text(), "1");
}

#[test]
fn unsupported_limits_are_refused_by_name() {
    let runtime = Runtime::new();
    for (place, value, name) in [
        ("memory", json!({"swappiness": 10}), "memory.swappiness"),
        ("cpu", json!({"realtimeRuntime": 1000}), "cpu.realtimeRuntime"),
        ("blockIO", json!({"leafWeight": 5}), "blockIO.leafWeight"),
        ("network", json!({"classID": 1}), "network.classID"),
        ("unified", json!({"no.such": "1"}), "no.such"),
    ] {
        let done = runtime.run(&Bundle::busybox(["true"]).with(&format!("/linux/resources/{place}"), value));
        assert!(done.code == 1 && done.message().contains(name), "{name}: {done:?}");
    }
}

#[test]
fn the_pids_limit_is_enforced() {
    let runtime = Runtime::new();
    let script = "for i in $(seq 40); do sleep 100 & done 2>/dev/null; echo unreachable";
    let done = runtime.run(&limited(Bundle::script(script)));
    assert!(
        done.message().contains("can't fork") || done.code != 0 || !done.text().contains("unreachable"),
        "{done:?}"
    );
    let script = "n=0; while [ $n -lt 10 ]; do sleep 100 & n=$((n+1)); done; echo started=$n";
    assert_eq!(runtime.run(&limited(Bundle::script(script))).ok().value("started"), "10");
}

#[test]
fn exceeding_the_memory_limit_exits_with_137() {
    let runtime = Runtime::new();
    let allocate = ["dd", "if=/dev/zero", "of=/dev/null", "bs=150M", "count=1"];
    let done = runtime.run(&limited(Bundle::busybox(allocate)));
    assert_eq!(done.code, 137, "{done:?}");
    assert_eq!(
        runtime.run(&limited(Bundle::busybox(["dd", "if=/dev/zero", "of=/dev/null", "bs=20M", "count=1"]))).code,
        0
    );
}

#[test]
fn an_exec_that_exceeds_the_memory_limit_is_killed_alone() {
    let runtime = Runtime::new();
    let bundle = limited(Bundle::busybox(["sleep", "1000"]));
    let container = runtime.start_container(&bundle);
    let done = container.exec(&["dd", "if=/dev/zero", "of=/dev/null", "bs=150M", "count=1"]);
    assert_eq!(done.code, 137, "{done:?}");
    assert_eq!(container.status(), "running");
    assert_eq!(container.script("exit 5").code, 5);
    let events = container.script("cat /sys/fs/cgroup/memory.events").ok().text();
    assert!(events.lines().any(|line| line == "oom_kill 1"), "{events}");
}

#[test]
fn the_cpu_quota_is_enforced() {
    let runtime = Runtime::new();
    let script = "n=0; until grep -q 'nr_throttled [1-9]' /sys/fs/cgroup/cpu.stat || [ $n = 100 ]; do n=$((n+1)); \
        i=0; while [ $i -lt 1000 ]; do i=$((i+1)); done; done; cat /sys/fs/cgroup/cpu.stat";
    let done = runtime.run(&limited(Bundle::script(script))).ok();
    let throttled = done.text().lines().find_map(|line| line.strip_prefix("nr_throttled ")?.parse::<u32>().ok());
    assert!(throttled.is_some_and(|count| count > 0), "{}", done.text());
}

#[test]
fn cpu_idle_can_be_updated() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]).with("/linux/resources/cpu", json!({"shares": 100}));
    let container = runtime.start_container(&bundle);
    let update = |options: &[&str]| runtime.call(&[&["update"], options, &[&container.id]].concat()).ok();
    let files = || container.script("cd /sys/fs/cgroup; cat cpu.idle pids.max").ok().text();
    update(&["--cpu-idle", "1"]);
    update(&["--pids-limit", "30"]);
    assert_eq!(files(), "1\n30");
    if is_vmrt() {
        let on_host = std::fs::read_to_string(format!("/sys/fs/cgroup/vmrt-{}/cpu.idle", container.id)).unwrap();
        assert_eq!(on_host, "1\n", "the VMM, too");
    }
    update(&["--cpu-idle", "0"]);
    assert_eq!(files(), "0\n30");
    assert_eq!(container.script("cat /sys/fs/cgroup/cpu.weight").ok().text(), "4");
}

#[test]
fn an_exec_uses_the_first_processs_cgroup_when_its_own_takes_no_processes() {
    let runtime = Runtime::new();
    let script = "cd /sys/fs/cgroup && mkdir inner && echo 1 >inner/cgroup.procs && echo +memory >cgroup.subtree_control && \
        touch /moved; exec sleep 1000";
    let bundle = Bundle::script(script).with_capabilities().without_mount("/sys/fs/cgroup").with(
        "/mounts/-",
        json!({"type": "cgroup", "source": "cgroup", "destination": "/sys/fs/cgroup", "options": ["nosuid", "rw"]}),
    );
    let container = runtime.start_container(&bundle);
    bundle.await_file("moved");
    assert_eq!(container.exec(&["cat", "/proc/self/cgroup"]).ok().text(), "0::/inner");
}

/// The limit of swap of the VMM's cgroup on the host. Hosts without swap accounting have none.
fn swap_on_host(container: &Container<'_>) -> Option<String> {
    let path = format!("/sys/fs/cgroup/vmrt-{}/memory.swap.max", container.id);
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

#[test]
fn swap_is_limited_on_the_host_and_follows_update() {
    let runtime = Runtime::new();
    let update = |container: &Container<'_>, options: &[&str]| {
        runtime.call(&[&["update"], options, &[&container.id]].concat()).ok();
    };
    let bundle = limited(Bundle::busybox(["sleep", "1000"]));
    let container = runtime.start_container(&bundle);
    let Some(swap) = swap_on_host(&container) else { return };
    assert_eq!(swap, "0");
    update(&container, &["--memory", "48M", "--memory-swap", "64M"]);
    assert_eq!(swap_on_host(&container), Some((16 * MIB).to_string()));
    update(&container, &["--memory-swap", "-1"]);
    assert_eq!(swap_on_host(&container).as_deref(), Some("max"));
    drop(container);
    let bundle = Bundle::busybox(["sleep", "1000"]).with("/linux/resources/memory", json!({"limit": 64 * MIB}));
    let container = runtime.start_container(&bundle);
    assert_eq!(swap_on_host(&container), Some((64 * MIB).to_string()));
}
