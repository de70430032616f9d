//! `update` and `events`: limits of a running container, and what it uses.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Container, RunningCommand, Runtime, is_vmrt, new_id, wait};
use vmrt_tests::{TIMEOUT, eventually};

const MIB: u64 = 1 << 20;

fn limited() -> Bundle {
    Bundle::busybox(["sleep", "1000"])
        .with("/linux/resources/memory", json!({"limit": 64 * MIB, "swap": 64 * MIB}))
        .with("/linux/resources/cpu", json!({"quota": 50_000, "period": 100_000, "shares": 512}))
        .with("/linux/resources/pids", json!({"limit": 20}))
}

/// A file of the container's cgroup, read in the container.
fn limit(container: &Container<'_>, file: &str) -> String {
    container.exec(&["cat", &format!("/sys/fs/cgroup/{file}")]).ok().text()
}

/// A file of the VMM's cgroup on the host.
fn on_host(container: &Container<'_>, file: &str) -> String {
    let path = format!("/sys/fs/cgroup/vmrt-{}/{file}", container.id);
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

fn update(runtime: &Runtime, container: &Container<'_>, options: &[&str]) {
    runtime.call(&[&["update"], options, &[&container.id]].concat()).ok();
}

fn stats(runtime: &Runtime, id: &str) -> Value {
    serde_json::from_slice(&runtime.call(&["events", "--stats", id]).ok().stdout).expect("one line of JSON")
}

#[test]
fn update_changes_only_the_given_limits() {
    let runtime = Runtime::new();
    let bundle = limited();
    let container = runtime.start_container(&bundle);
    let update = |options: &[&str]| update(&runtime, &container, options);
    update(&["--memory", "48M", "--memory-swap", "48M"]);
    assert_eq!(limit(&container, "memory.max"), (48 * MIB).to_string());
    assert_eq!(limit(&container, "cpu.max"), "50000 100000");
    assert_eq!(limit(&container, "pids.max"), "20");
    update(&["--pids-limit", "30", "--cpu-quota", "20000", "--cpu-share", "1024"]);
    assert_eq!(limit(&container, "pids.max"), "30");
    assert_eq!(limit(&container, "cpu.max"), "20000 100000");
    assert_eq!(limit(&container, "cpu.weight"), "39");
    assert_eq!(limit(&container, "memory.max"), (48 * MIB).to_string());
    update(&["--cpu-quota", "-1", "--memory-reservation", "16M"]);
    assert_eq!(limit(&container, "cpu.max"), "max 100000");
    assert_eq!(limit(&container, "memory.low"), (16 * MIB).to_string());
}

#[test]
fn update_reads_limits_as_json_from_a_file_or_standard_input() {
    let runtime = Runtime::new();
    let bundle = limited();
    let container = runtime.start_container(&bundle);
    let memory = json!({"limit": 32 * MIB, "swap": 32 * MIB, "kernel": 32 * MIB});
    let resources = json!({"memory": memory, "cpu": {"shares": 0, "quota": 0}, "pids": {"limit": 11},
        "devices": [{"allow": true, "access": "rwm"}]});
    let mut command = runtime.command(&["update", "--resources", "-", &container.id]);
    RunningCommand::start(&mut command, Some(resources.to_string().into_bytes())).end().ok();
    assert_eq!(limit(&container, "memory.max"), (32 * MIB).to_string());
    assert_eq!(limit(&container, "cpu.max"), "50000 100000");
    assert_eq!(limit(&container, "pids.max"), "11");
    let file = bundle.path().join("resources.json");
    std::fs::write(&file, json!({"cpu": {"quota": 40_000}}).to_string()).unwrap();
    runtime.call(&["update", "-r", file.to_str().unwrap(), &container.id]).ok();
    assert_eq!(limit(&container, "cpu.max"), "40000 100000");
    std::fs::write(&file, json!({"memory": {"limit": 4096, "checkBeforeUpdate": true}}).to_string()).unwrap();
    let done = runtime.call(&["update", "-r", file.to_str().unwrap(), &container.id]);
    if is_vmrt() {
        assert!(done.code != 0 && done.message().contains("rejecting memory limit 4096 <= usage"), "{done:?}");
        assert_eq!(limit(&container, "memory.max"), (32 * MIB).to_string());
    }
    std::fs::write(&file, "{").unwrap();
    assert_ne!(runtime.call(&["update", "-r", file.to_str().unwrap(), &container.id]).code, 0);
}

#[test]
fn an_updated_limit_holds_at_once() {
    let runtime = Runtime::new();
    let bundle = limited();
    let container = runtime.start_container(&bundle);
    let allocate = ["dd", "if=/dev/zero", "of=/dev/null", "bs=40M", "count=1"];
    assert_eq!(container.exec(&allocate).code, 0);
    update(&runtime, &container, &["--memory", "24M", "--memory-swap", "24M"]);
    assert_eq!(container.exec(&allocate).code, 137);
}

#[test]
fn impossible_updates_are_refused_by_name() {
    let runtime = Runtime::new();
    if !is_vmrt() {
        return;
    }
    let bundle = limited();
    let container = runtime.start_container(&bundle);
    let update = |options: &[&str]| runtime.call(&[&["update"], options, &[&container.id]].concat());
    for (options, words) in [
        (&["--memory", "64G", "--memory-swap", "64G"][..], ["65536 MiB", "the host has"]),
        (&["--cpu-rt-runtime", "1000"], ["realtimeRuntime", "cannot"]),
        (&["--l3-cache-schema", "L3:0=f"], ["--l3-cache-schema", "refused"]),
        (&["--memory", "lots"], ["memory", "lots"]),
    ] {
        let done = update(options);
        assert_eq!(done.code, 1, "{options:?}");
        assert!(words.iter().all(|word| done.message().contains(word)), "{}", done.message());
    }
    assert_eq!(limit(&container, "memory.max"), (64 * MIB).to_string());
    assert_eq!(limit(&container, "cpu.max"), "50000 100000");
}

#[test]
fn update_changes_the_limits_of_the_vmm() {
    let runtime = Runtime::new();
    if !is_vmrt() {
        return;
    }
    let bundle = limited();
    let container = runtime.start_container(&bundle);
    let on_host = |file: &str| on_host(&container, file);
    assert_eq!(on_host("cpu.max"), "62500 100000");
    // The container's limit, and 128 MiB each for the guest and the VMM.
    assert_eq!(on_host("memory.max"), ((64 + 256) * MIB).to_string());
    update(
        &runtime,
        &container,
        &["--cpu-quota", "20000", "--cpu-share", "1024", "--memory", "32M", "--memory-swap", "-1"],
    );
    assert_eq!((on_host("cpu.max"), on_host("cpu.weight")), ("30000 100000".into(), "39".into()));
    assert_eq!(on_host("memory.max"), ((32 + 256) * MIB).to_string(), "the machine gives memory back");
    update(&runtime, &container, &["--cpu-quota", "-1"]);
    assert_eq!(on_host("cpu.max"), "max 100000");
}

/// The device number of a disk of the host.
fn disk() -> (u64, u64) {
    let disks = std::fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path());
    let mut filled =
        disks.filter(|disk| std::fs::read_to_string(disk.join("size")).is_ok_and(|size| size.trim() != "0"));
    let number = std::fs::read_to_string(filled.next().expect("a disk").join("dev")).unwrap();
    let (major, minor) = number.trim().split_once(':').unwrap();
    (major.parse().unwrap(), minor.parse().unwrap())
}

#[test]
fn block_device_limits_apply_to_the_vmm() {
    let runtime = Runtime::new();
    if !is_vmrt() {
        return;
    }
    let (major, minor) = disk();
    let throttled = |rate: u64| json!([{"major": major, "minor": minor, "rate": rate}]);
    let bundle = limited()
        .with("/linux/resources/blockIO", json!({"weight": 500}))
        .with("/linux/resources/blockIO/throttleReadBpsDevice", throttled(3 * MIB))
        .with("/linux/resources/blockIO/throttleWriteIOPSDevice", throttled(120));
    let container = runtime.start_container(&bundle);
    let limits = || on_host(&container, "io.max");
    assert_eq!(limits(), format!("{major}:{minor} rbps={} wbps=max riops=max wiops=120", 3 * MIB));
    assert_eq!(limit(&container, "io.weight"), "default 4950");
    let file = bundle.path().join("resources.json");
    let change = |io: Value| {
        std::fs::write(&file, json!({"blockIO": io}).to_string()).unwrap();
        runtime.call(&["update", "--resources", file.to_str().unwrap(), &container.id])
    };
    change(json!({"throttleReadBpsDevice": throttled(5 * MIB), "throttleWriteIOPSDevice": throttled(0)})).ok();
    assert_eq!(limits(), format!("{major}:{minor} rbps={} wbps=max riops=max wiops=max", 5 * MIB));
    let nowhere = json!([{"major": 4090, "minor": 0, "rate": 1}]);
    let done = change(json!({"throttleReadIOPSDevice": nowhere}));
    assert!(done.code == 1 && done.message().contains("io.max"), "{done:?}");
    let absent = Bundle::busybox(["true"]).with("/linux/resources/blockIO", json!({"throttleReadBpsDevice": nowhere}));
    let done = runtime.run(&absent);
    assert!(done.code == 1 && done.message().contains("io.max"), "{done:?}");
}

#[test]
fn a_small_cpu_quota_does_not_delay_the_boot() {
    let runtime = Runtime::new();
    if !is_vmrt() {
        return;
    }
    // With this quota, the guest would take more than half a minute to boot. Without one, it takes two seconds.
    let bundle = Bundle::busybox(["true"]).with("/linux/resources/cpu", json!({"quota": 4_000, "period": 100_000}));
    let begin = Instant::now();
    let container = runtime.create_container(&bundle);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    let quota = std::fs::read_to_string(format!("/sys/fs/cgroup/vmrt-{}/cpu.max", container.id)).unwrap();
    assert_eq!(quota.trim(), "14000 100000");
}

#[test]
fn with_cgroup_manager_disabled_limits_hold_in_the_guest() {
    let runtime = Runtime::new();
    if !is_vmrt() {
        return;
    }
    let bundle =
        Bundle::busybox(["cat", "/sys/fs/cgroup/pids.max"]).with("/linux/resources/pids", json!({"limit": 77}));
    let (bundle, id) = (bundle.without("/linux/cgroupsPath"), new_id());
    let path = bundle.path().to_str().unwrap();
    let mut create = runtime.command(&["--cgroup-manager", "disabled", "create", "--bundle", path, &id]);
    let status = create.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(status.success(), "{status}");
    assert!(!Path::new(&format!("/sys/fs/cgroup/vmrt-{id}")).exists());
    runtime.call(&["delete", "--force", &id]).ok();
    assert_eq!(runtime.call(&["--cgroup-manager", "disabled", "run", "--bundle", path, &id]).ok().text(), "77");
    let shares = Bundle::busybox(["true"]).with("/linux/resources/cpu", json!({"shares": 512}));
    let done = runtime.call(&["--cgroup-manager", "disabled", "run", "--bundle", shares.path().to_str().unwrap(), &id]);
    assert!(done.code == 1 && done.message().contains("--cgroup-manager is disabled"), "{done:?}");
}

#[test]
fn a_used_or_frozen_cgroup_is_refused() {
    let runtime = Runtime::new();
    if !is_vmrt() {
        return;
    }
    let name = format!("/found-{}", std::process::id());
    let dir = std::path::PathBuf::from(format!("/sys/fs/cgroup{name}"));
    std::fs::create_dir(&dir).unwrap();
    let bundle = Bundle::busybox(["true"]).with("/linux/cgroupsPath", json!(name));
    let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    std::fs::write(dir.join("cgroup.procs"), other.id().to_string()).unwrap();
    let in_use = runtime.run(&bundle);
    other.kill().and_then(|()| other.wait()).unwrap();
    std::fs::write(dir.join("cgroup.freeze"), "1").unwrap();
    let frozen = runtime.run(&bundle);
    std::fs::write(dir.join("cgroup.freeze"), "0").unwrap();
    let free = runtime.run(&bundle);
    let refused = "vmrt run failed: container's cgroup";
    for (done, words) in [(in_use, "is not empty: 1 process(es) found"), (frozen, "unexpectedly frozen")] {
        assert!(done.code == 1 && done.message().contains(&format!("{refused} {words}")), "{done:?}");
    }
    free.ok();
    runtime.assert_clean();
}

#[test]
fn a_cgroup_that_another_container_uses_by_now_is_left() {
    let runtime = Runtime::new();
    if !is_vmrt() {
        return;
    }
    let name = format!("/used-twice-{}", std::process::id());
    let bundle = Bundle::busybox(["sleep", "1000"]).with("/linux/cgroupsPath", json!(name));
    let first = runtime.start_container(&bundle);
    first.call("kill", &["KILL"]).ok();
    first.await_status("stopped");
    // The helper ends after its VMM.
    let processes = Path::new("/sys/fs/cgroup").join(&name[1..]).join("cgroup.procs");
    let is_empty = eventually(TIMEOUT, || std::fs::read_to_string(&processes).unwrap().is_empty().then_some(()));
    assert!(is_empty.is_some(), "processes are left in {name}");
    let second = runtime.start_container(&bundle);
    let deleted = first.call("delete", &[]);
    assert!(deleted.code == 1 && deleted.message().contains(&format!("/sys/fs/cgroup{name}")), "{deleted:?}");
    assert_eq!(first.call("state", &[]).code, 1);
    assert_eq!(second.script("echo works").ok().text(), "works");
    second.call("delete", &["--force"]).ok();
    assert!(!Path::new("/sys/fs/cgroup").join(&name[1..]).exists());
}

#[test]
fn the_machine_grows_and_shrinks_with_the_memory_limit() {
    let runtime = Runtime::new();
    if !is_vmrt() {
        return;
    }
    let bundle = limited().with("/linux/resources/memory", json!({"limit": 128 * MIB, "swap": 128 * MIB}));
    let data: Vec<u8> = (0..32 * MIB / 4).flat_map(|word| u32::try_from(word * 7).unwrap().to_le_bytes()).collect();
    std::fs::write(bundle.file("data"), &data).unwrap();
    let container = runtime.start_container(&bundle);
    let update = |limit: &str| update(&runtime, &container, &["--memory", limit, "--memory-swap", limit]);
    let host = |file: &str| on_host(&container, file).parse::<u64>().unwrap() / MIB;
    let total = || -> u64 {
        let line = container.exec(&["grep", "MemTotal", "/proc/meminfo"]).ok().text();
        line.split_whitespace().nth(1).expect("a number").parse::<u64>().unwrap() / 1024
    };
    let allocate = ["dd", "if=/dev/zero", "of=/dev/null", "bs=700M", "count=1"];
    assert_eq!(host("memory.max"), 128 + 128 + 128);
    let at_boot = total();
    assert_ne!(container.exec(&allocate).code, 0);
    for round in ["first", "again"] {
        update("1G");
        assert_eq!(limit(&container, "memory.max"), (1024 * MIB).to_string(), "{round}");
        assert_eq!(stats(&runtime, &container.id)["data"]["memory"]["usage"]["limit"], json!(1024 * MIB));
        assert_eq!(host("memory.max"), 1024 + 128 + 128);
        // The guest uses the last part some time after it has been plugged in.
        let whole = eventually(Duration::from_secs(10), || (total() == at_boot + 1024 - 128).then_some(()));
        assert!(whole.is_some(), "{round}: the guest has {} MiB, {at_boot} at boot", total());
        container.exec(&allocate).ok();
        assert!(limit(&container, "memory.peak").parse::<u64>().unwrap() > 700 * MIB);
        // The guest uses plugged memory first, so the file is read into it.
        container.script("rm -f /copy && cp /data /copy").ok();
        assert!(std::fs::read(bundle.file("copy")).unwrap() == data, "{round}: a file went through the new memory");
        let used = host("memory.current");
        update("128M");
        assert_eq!(limit(&container, "memory.max"), (128 * MIB).to_string());
        let (machine, bound) = (total(), host("memory.max"));
        assert!(machine < at_boot + 256 && bound < 128 + 128 + 128 + 256, "{round}: {machine} MiB, {bound} MiB");
        let left = host("memory.current");
        assert!(used > 700 && left < used - 400, "{round}: the host got back {used} - {left} MiB");
    }
}

#[test]
fn the_number_of_vcpus_follows_the_cpu_quota() {
    let runtime = Runtime::new();
    if !is_vmrt() {
        return;
    }
    let host = std::thread::available_parallelism().unwrap().get();
    assert!(host > 1, "the test needs a host of two CPUs");
    let bundle = limited();
    let container = runtime.start_container(&bundle);
    let quota = |quota: &str| update(&runtime, &container, &["--cpu-quota", quota]);
    let count = || container.exec(&["nproc"]).ok().text();
    // Prints the vCPU on which a process runs that is bound to one vCPU.
    let runs_on = |cpu: &str| container.script(&format!("taskset -c {cpu} sh -c 'cut -d\" \" -f39 /proc/self/stat'"));
    assert_eq!(count(), "1");
    assert_ne!(runs_on("1").code, 0);
    for _ in 0..2 {
        quota("200000");
        assert_eq!((count(), runs_on("1").ok().text()), ("2".to_owned(), "1".to_owned()));
        assert_eq!(limit(&container, "cpu.max"), "200000 100000");
        assert_eq!(on_host(&container, "cpu.max"), "250000 100000");
        quota("50000");
        assert_eq!((count(), runs_on("0").ok().text()), ("1".to_owned(), "0".to_owned()));
    }
    quota("6400000");
    assert_eq!(count(), host.to_string(), "no more than the host has");
    quota("-1");
    assert_eq!(count(), host.to_string());
}

#[test]
fn stats_are_the_containers_in_runcs_form() {
    let runtime = Runtime::new();
    let bundle = limited();
    let container = runtime.start_container(&bundle);
    container.script("i=0; while [ $i -lt 5000 ]; do i=$((i+1)); done").ok();
    let event = stats(&runtime, &container.id);
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(container.id)));
    let data = &event["data"];
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        keys(data),
        ["blkio", "cpu", "cpuset", "hugetlb", "intel_rdt", "memory", "network_interfaces", "pids"].map(String::from)
    );
    assert_eq!(data["pids"], json!({"current": 1, "limit": 20}));
    assert_eq!(data["memory"]["usage"]["limit"], json!(64 * MIB));
    let memory: u64 = limit(&container, "memory.current").parse().unwrap();
    let usage = data["memory"]["usage"]["usage"].as_u64().unwrap();
    assert!(usage > 0 && usage < memory + 16 * MIB, "{usage} and {memory}");
    let raw = &data["memory"]["raw"];
    assert!(
        raw["anon"].as_u64().is_some() && raw["file"] == data["memory"]["cache"].clone()
            || data["memory"]["cache"].is_null()
    );
    let cpu = &data["cpu"]["usage"];
    let (total, user, kernel) = (cpu["total"].as_u64(), cpu["user"].as_u64(), cpu["kernel"].as_u64());
    assert!(total > Some(0) && total >= user.max(kernel), "{cpu}");
    let later = stats(&runtime, &container.id);
    assert!(later["data"]["cpu"]["usage"]["total"].as_u64() >= total);
}

#[test]
fn events_run_until_the_end_and_report_oom() {
    let runtime = Runtime::new();
    let bundle = limited();
    let container = runtime.start_container(&bundle);
    let mut command = runtime.command(&["events", "--interval", "200ms", &container.id]);
    let mut events = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().expect("an event").unwrap()).unwrap() };
    assert_eq!(next()["type"], "stats");
    assert_eq!(container.exec(&["dd", "if=/dev/zero", "of=/dev/null", "bs=150M", "count=1"]).code, 137);
    let out_of_memory = (0..1000).map(|_| next()).find(|event| event["type"] == "oom").expect("an oom event");
    assert_eq!(out_of_memory, json!({"type": "oom", "id": container.id}));
    assert_eq!(next()["type"], "stats", "statistics continue");
    container.call("kill", &["KILL"]).ok();
    while lines.next().is_some() {}
    assert_eq!(wait(&mut events), 0);
}

#[test]
fn stats_and_update_of_a_stopped_container_fail() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["true"]);
    let container = runtime.start_container(&bundle);
    container.await_status("stopped");
    let done = runtime.call(&["events", "--stats", &container.id]);
    assert!(done.code == 1 && done.message().contains("is not running"), "{done:?}");
    assert_eq!(runtime.call(&["update", "--pids-limit", "5", &container.id]).code, 1);
}

#[test]
fn exec_can_use_a_cgroup_below_the_containers() {
    let runtime = Runtime::new();
    let mount = json!({"type": "cgroup", "source": "cgroup", "destination": "/sys/fs/cgroup", "options": ["nosuid"]});
    let bundle = Bundle::script("mkdir /sys/fs/cgroup/below && touch /ready; exec sleep 1000")
        .without_mount("/sys/fs/cgroup")
        .with("/mounts/-", mount);
    let container = runtime.start_container(&bundle);
    bundle.await_file("ready");
    let exec = |cgroup: &str| {
        let mut command = runtime.command(&["exec", "--cgroup", cgroup, &container.id, "cat", "/proc/self/cgroup"]);
        RunningCommand::start(&mut command, None).end()
    };
    assert_eq!(exec("/below").ok().text(), "0::/below");
    assert_ne!(exec("/missing").code, 0);
    assert_ne!(exec("../..").code, 0);
    container.call("kill", &["KILL"]).ok();
    container.await_status("stopped");
}
