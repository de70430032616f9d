//! Containers that join namespaces of another by its pid, as the containers of a pod do. They run in its machine.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Container, RunningCommand, Runtime, is_vmrt, new_id};
use vmrt_tests::{TIMEOUT, eventually};

const SHARED: [(&str, &str); 4] = [("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts")];

/// The bundle with these namespaces of `host`, and new ones of all other kinds.
pub(crate) fn join_namespaces(bundle: Bundle, host: &Container<'_>, shared: &[&str]) -> Bundle {
    let own = ["mount", "cgroup"].map(|kind| json!({"type": kind}));
    let namespace = |(kind, file): (&str, &str)| match shared.contains(&kind) {
        true => json!({"type": kind, "path": format!("/proc/{}/ns/{file}", host.pid())}),
        false => json!({"type": kind}),
    };
    let all: Vec<Value> = SHARED.into_iter().map(namespace).chain(own).collect();
    bundle.without("/hostname").with("/linux/namespaces", json!(all))
}

pub(crate) const ALL: [&str; 4] = ["pid", "network", "ipc", "uts"];

/// A script that prints the namespaces and the machine of a process, a line each.
const WHERE: &str = "for ns in pid net ipc uts mnt cgroup; do readlink /proc/self/ns/$ns; done; \
     cat /proc/sys/kernel/random/boot_id";

fn namespaces_and_machine(container: &Container<'_>) -> Vec<String> {
    container.script(WHERE).ok().text().lines().map(str::to_owned).collect()
}

fn network_on_host(container: &Container<'_>) -> std::path::PathBuf {
    fs::read_link(format!("/proc/{}/ns/net", container.pid())).unwrap()
}

#[test]
fn a_container_joins_namespaces_of_another() {
    let runtime = Runtime::new();
    let bundle = Bundle::script("echo >/ready; sleep 1000").with("/hostname", json!("first")).with_capabilities();
    let first = runtime.start_container(&bundle);
    first.script("hostname pod; ip addr add 10.77.0.1/24 dev lo").ok();
    let (all, network) = (
        join_namespaces(Bundle::busybox(["sleep", "1000"]), &first, &ALL),
        join_namespaces(Bundle::busybox(["sleep", "1000"]), &first, &["network"]),
    );
    let (all, network) = (runtime.start_container(&all), runtime.start_container(&network));
    let [of_first, of_all, of_network] = [&first, &all, &network].map(namespaces_and_machine);
    assert_eq!(of_first[..4], of_all[..4]);
    assert_eq!((&of_first[1], &of_first[6]), (&of_network[1], &of_network[6]));
    for other in [0, 2, 3] {
        assert_ne!(of_first[other], of_network[other]);
    }
    for own in [4, 5] {
        assert!(of_first[own] != of_all[own] && of_first[own] != of_network[own] && of_all[own] != of_network[own]);
    }
    assert_eq!(all.exec(&["hostname"]).ok().text(), "pod");
    assert!(network.exec(&["ip", "addr", "show", "lo"]).ok().text().contains("10.77.0.1"));
    assert!(all.exec(&["ps"]).ok().text().contains("sleep 1000"), "the first's processes are seen");
    // On the host each container is a separate process, in the network namespace of the pod.
    assert_ne!(first.pid(), all.pid());
    assert_eq!(network_on_host(&first), network_on_host(&all));
    assert_eq!(network_on_host(&first), network_on_host(&network));
}

#[test]
fn all_commands_work_on_a_container_of_a_pod() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let first = runtime.start_container(&bundle);
    let writes_and_fails = join_namespaces(Bundle::script("echo out; echo err >&2; exit 7"), &first, &ALL);
    let missing_program = join_namespaces(Bundle::busybox(["/nonexistent"]), &first, &ALL);
    for _ in 0..2 {
        assert_ne!(runtime.run(&missing_program).code, 0);
        let done = runtime.run(&writes_and_fails);
        assert_eq!((done.code, done.text().as_str(), done.message().trim()), (7, "out", "err"));
    }
    let bundle =
        join_namespaces(Bundle::script("trap 'exit 3' TERM; echo >/ready; while :; do sleep 0.1; done"), &first, &ALL);
    let bundle = bundle.with("/linux/resources/pids", json!({"limit": 50}));
    let second = runtime.create_container(&bundle);
    assert_eq!(second.status(), "created");
    second.call("start", &[]).ok();
    bundle.await_file("ready");
    assert_eq!(second.script("exit 9").code, 9);
    second.call("pause", &[]).ok();
    assert_eq!((second.status(), first.status()), ("paused".into(), "running".into()));
    second.call("resume", &[]).ok();
    let machine = || first.script("nproc; head -n 1 /proc/meminfo").ok().text();
    let before = machine();
    let limits = ["--pids-limit", "30", "--memory", "900M", "--memory-swap", "900M", "--cpu-quota", "200000"];
    runtime.call(&[&["update"], &limits[..], &[&second.id]].concat()).ok();
    let files = ["pids.max", "memory.max", "cpu.max"].map(|file| format!("/sys/fs/cgroup/{file}"));
    let set = second.exec(&["cat", &files[0], &files[1], &files[2]]).ok().text();
    assert_eq!(set, format!("30\n{}\n200000 100000", 900 << 20));
    assert_eq!(machine(), before, "the machine is the first one's");
    assert!(second.call("ps", &[]).ok().text().contains("while :"));
    assert!(!second.call("ps", &[]).ok().text().contains("sleep 1000"), "only its own processes are listed");
    second.call("kill", &["TERM"]).ok();
    second.await_status("stopped");
    if is_vmrt() {
        assert_eq!(second.state()["exitStatus"], json!(3));
    }
    second.call("delete", &[]).ok();
    assert_eq!(first.status(), "running");
}

/// A process that is made at the time another one's program begins once kept the agent busy for ever.
#[test]
fn containers_and_processes_of_a_pod_start_at_the_same_time() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let first = runtime.start_container(&bundle);
    let bundles: Vec<_> =
        (0..4).map(|number| join_namespaces(Bundle::busybox(["echo", &number.to_string()]), &first, &ALL)).collect();
    let missing = join_namespaces(Bundle::busybox(["/nonexistent"]), &first, &ALL);
    let run =
        |bundle: &Bundle| RunningCommand::start(runtime.command(&["run", "-b"]).arg(bundle.path()).arg(new_id()), None);
    let exec = |program: &str| RunningCommand::start(&mut runtime.command(&["exec", &first.id, program]), None);
    for _ in 0..2 {
        let runs: Vec<_> = bundles.iter().map(run).collect();
        let execs: Vec<_> = (0..4).map(|_| exec("hostname")).collect();
        let failures = [run(&missing), exec("/nonexistent")];
        for (number, run) in runs.into_iter().enumerate() {
            assert_eq!(run.end().ok().text(), number.to_string());
        }
        execs.into_iter().for_each(|exec| drop(exec.end().ok()));
        for failure in failures {
            assert_ne!(failure.end().code, 0);
        }
    }
    assert_eq!(first.status(), "running");
}

#[test]
fn a_container_ends_with_its_process_on_the_host() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let first = runtime.start_container(&bundle);
    let marker = format!("{}", 4000 + std::process::id() % 1000);
    let bundle = join_namespaces(Bundle::busybox(["sleep", &marker]), &first, &ALL);
    let second = runtime.start_container(&bundle);
    let is_there = || first.exec(&["ps"]).ok().text().contains(&format!("sleep {marker}"));
    assert!(is_there());
    kill(Pid::from_raw(second.pid()), Signal::SIGKILL).unwrap();
    second.await_status("stopped");
    second.call("delete", &[]).ok();
    assert!(!is_there(), "it outlived its process on the host");
    // The id can be used again, also in the machine.
    let mut command = runtime.command(&["run", "--detach", "--bundle"]);
    let code = vmrt_tests::runtime::wait(
        &mut command.arg(bundle.path()).arg(&second.id).stdout(std::process::Stdio::null()).spawn().unwrap(),
    );
    assert_eq!(code, 0);
    assert!(is_there());
    assert_eq!(runtime.call(&["delete", &second.id]).code, 1, "it runs");
    runtime.call(&["delete", "--force", &second.id]).ok();
    assert!(!is_there());
}

/// The uptime of a container's machine in seconds.
fn uptime(container: &Container<'_>) -> f64 {
    let text = container.exec(&["cat", "/proc/uptime"]).ok().text();
    text.split_whitespace().next().and_then(|seconds| seconds.parse().ok()).expect("a number of seconds")
}

#[test]
fn a_container_of_a_pod_ends_with_its_first_process() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let first = runtime.start_container(&bundle);
    let cgroups = json!({"type": "cgroup", "source": "cgroup", "destination": "/sys/fs/cgroup", "options": ["nosuid"]});
    let end = "cut -d ' ' -f 1 /proc/uptime; exit 3";
    for (marker, script) in [
        ("4711", format!("sleep 4711 & sleep 2; {end}")),
        ("4712", format!("trap '' TERM; (sleep 4712; sleep 4712) & sleep 2; {end}")),
        (
            "4713",
            format!(
                "mkdir -p /sys/fs/cgroup/a/b; (sh -c 'echo $PPID' >/sys/fs/cgroup/a/b/cgroup.procs; exec sleep 4713) & sleep 2; {end}"
            ),
        ),
    ] {
        let bundle = Bundle::script(&script)
            .with_capabilities()
            .without_mount("/sys/fs/cgroup")
            .with("/mounts/-", cgroups.clone());
        let done = runtime.run(&join_namespaces(bundle, &first, &ALL));
        assert_eq!(done.code, 3, "{marker}: {done:?}");
        let ended: f64 = done.text().parse().unwrap();
        let waited = uptime(&first) - ended;
        assert!(waited < 20.0, "{marker}: {waited} s");
        assert!(
            !first.exec(&["ps"]).ok().text().contains(&format!("sleep {marker}")),
            "{marker} outlived its container"
        );
    }
}

#[test]
fn the_pod_ends_with_its_first_container() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let first = runtime.start_container(&bundle);
    let joined = join_namespaces(Bundle::busybox(["sleep", "1000"]), &first, &ALL);
    let late = join_namespaces(Bundle::busybox(["true"]), &first, &ALL);
    let second = runtime.start_container(&joined);
    first.call("kill", &["KILL"]).ok();
    second.await_status("stopped");
    second.call("delete", &[]).ok();
    first.await_status("stopped");
    assert_ne!(runtime.run(&late).code, 0, "a container that has ended cannot be joined");
}

fn namespace_of(host: &Container<'_>, kind: &str) -> Value {
    json!({"type": kind, "path": format!("/proc/{}/ns/{kind}", host.pid())})
}

#[test]
fn a_container_joins_the_user_namespace_of_its_pod() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]).with_user_namespace();
    let first = runtime.start_container(&bundle);
    let shared = ["network", "ipc", "uts"];
    let script = "id -u >/made; hostname other; mount -t tmpfs none /mnt && exec sleep 1000";
    let bundle = join_namespaces(Bundle::script(script).with_capabilities(), &first, &shared);
    fs::create_dir(bundle.file("mnt")).unwrap();
    let bundle = bundle.with_mapped_owners().with("/linux/namespaces/-", namespace_of(&first, "user"));
    let second = runtime.start_container(&bundle);
    bundle.await_file("made");
    let made = fs::metadata(bundle.file("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (100_000, 200_000), "the host sees the mapped user");
    let namespaces_and_users = |container: &Container<'_>| {
        let script =
            "for ns in user net ipc uts pid cgroup; do readlink /proc/self/ns/$ns; done; cat /proc/self/uid_map";
        container.script(script).ok().text().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let (first_namespaces, second_namespaces) = (namespaces_and_users(&first), namespaces_and_users(&second));
    assert_eq!((&first_namespaces[..4], &first_namespaces[6]), (&second_namespaces[..4], &second_namespaces[6]));
    assert!(
        first_namespaces[4] != second_namespaces[4] && first_namespaces[5] != second_namespaces[5],
        "pid and cgroup namespaces are its own"
    );
    let named = eventually(TIMEOUT, || (first.exec(&["hostname"]).ok().text() == "other").then_some(()));
    assert!(named.is_some(), "root of the user namespace may change what belongs to it");
    assert_eq!(second.script("grep -c ' /mnt tmpfs' /proc/1/mounts; cat /proc/1/comm").ok().text(), "1\nsleep");
    let user = runtime.call(&["exec", "--user", "7:8", &second.id, "sh", "-c", "id -u; id -g"]);
    assert_eq!(user.ok().text(), "7\n8");
    // A third container joins the second's user namespace, which is the first's. An engine may specify its mappings as well.
    let same = join_namespaces(Bundle::busybox(["cat", "/proc/self/uid_map"]).with_user_namespace(), &second, &ALL);
    let same = same.with("/linux/namespaces/-", namespace_of(&second, "user"));
    let done = runtime.run(&same).ok();
    assert_eq!(done.text().split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"]);
    let other = same.with("/linux/uidMappings/0/size", json!(10));
    let done = runtime.run(&other);
    assert!(done.code == 1 && done.message().contains("non-matching mapping"), "{done:?}");
}

#[test]
fn a_container_of_a_pod_can_have_a_user_namespace_of_its_own() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let first = runtime.start_container(&bundle);
    let script = "readlink /proc/self/ns/net; cat /proc/self/uid_map";
    // A sysfs shows a network namespace, and only the owner of that namespace may mount it.
    let mapped =
        join_namespaces(Bundle::script(script).without_mount("/sys"), &first, &["network"]).with_user_namespace();
    let done = runtime.run(&mapped).ok();
    let net = first.script("readlink /proc/self/ns/net").ok().text();
    assert_eq!(done.text().split_whitespace().collect::<Vec<_>>(), [net.as_str(), "0", "100000", "65536"]);
    if is_vmrt() {
        let users = join_namespaces(Bundle::busybox(["true"]), &first, &[]);
        let users = users.with("/linux/namespaces/-", namespace_of(&first, "user"));
        let done = runtime.run(&users);
        assert!(done.code == 1 && done.message().contains("has none of its own"), "{done:?}");
        let mounts = json!({"type": "mount", "path": format!("/proc/{}/ns/mnt", first.pid())});
        let mounts = Bundle::busybox(["true"]).with("/linux/namespaces/-", mounts);
        assert_eq!(runtime.run(&mounts).code, 1);
    }
}

#[test]
fn cgroup_and_time_namespaces_can_be_joined() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let clocks = json!({"boottime": {"secs": 1_000_000}, "monotonic": {"secs": 1_000_000}});
    let bundle = Bundle::busybox(["sleep", "1000"])
        .with("/linux/namespaces/-", json!({"type": "time"}))
        .with("/linux/timeOffsets", clocks);
    let first = runtime.start_container(&bundle);
    let path = |kind: &str| json!({"type": kind, "path": format!("/proc/{}/ns/{kind}", first.pid())});
    let kinds = ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
    let namespaces: Vec<Value> = kinds.into_iter().chain([path("cgroup"), path("time")]).collect();
    let script =
        "for ns in cgroup time; do readlink /proc/self/ns/$ns; done; cut -d. -f1 /proc/uptime; cat /proc/self/cgroup";
    let bundle = Bundle::script("sleep 1000").with("/linux/namespaces", json!(namespaces));
    let second = runtime.start_container(&bundle);
    let [first_namespaces, second_namespaces] = [&first, &second].map(|container| container.script(script).ok().text());
    let (first_namespaces, second_namespaces): (Vec<_>, Vec<_>) =
        (first_namespaces.lines().collect(), second_namespaces.lines().collect());
    assert_eq!(first_namespaces[..2], second_namespaces[..2]);
    assert!(second_namespaces[2].parse::<u64>().unwrap() >= 1_000_000, "{second_namespaces:?}");
    assert_eq!(first_namespaces[3], "0::/");
    assert!(second_namespaces[3].starts_with("0::/../"), "its cgroup is seen from the other's: {second_namespaces:?}");
}
