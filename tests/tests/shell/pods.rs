//! Containers that join namespaces of another by its pid, as those of a pod do: they are in its machine.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Container, Runtime, is_vmrt};

const SHARED: [(&str, &str); 4] = [("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts")];

/// The bundle with these namespaces of `host`, and all others its own.
fn joining(bundle: Bundle, host: &Container<'_>, shared: &[&str]) -> Bundle {
    let own = ["mount", "cgroup"].map(|kind| json!({"type": kind}));
    let namespace = |(kind, file): (&str, &str)| match shared.contains(&kind) {
        true => json!({"type": kind, "path": format!("/proc/{}/ns/{file}", host.pid())}),
        false => json!({"type": kind}),
    };
    let all: Vec<Value> = SHARED.into_iter().map(namespace).chain(own).collect();
    bundle.without("/hostname").with("/linux/namespaces", json!(all))
}

const ALL: [&str; 4] = ["pid", "network", "ipc", "uts"];

/// What tells the namespaces and the machine that a process is in, a line each.
const WHERE: &str = "for ns in pid net ipc uts mnt cgroup; do readlink /proc/self/ns/$ns; done; \
     cat /proc/sys/kernel/random/boot_id";

fn places(container: &Container<'_>) -> Vec<String> {
    container.script(WHERE).ok().text().lines().map(str::to_owned).collect()
}

fn network_on_host(container: &Container<'_>) -> std::path::PathBuf {
    fs::read_link(format!("/proc/{}/ns/net", container.pid())).unwrap()
}

#[test]
fn a_container_is_in_the_namespaces_of_another_that_it_joins() {
    let runtime = Runtime::new();
    let bundle = Bundle::script("echo >/ready; sleep 1000").with("/hostname", json!("first")).all_powerful();
    let first = runtime.started(&bundle);
    first.script("hostname pod; ip addr add 10.77.0.1/24 dev lo").ok();
    let (all, network) = (
        joining(Bundle::busybox(["sleep", "1000"]), &first, &ALL),
        joining(Bundle::busybox(["sleep", "1000"]), &first, &["network"]),
    );
    let (all, network) = (runtime.started(&all), runtime.started(&network));
    let [of_first, of_all, of_network] = [&first, &all, &network].map(places);
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
    // To the host each is a process of its own, in the network namespace of the pod.
    assert_ne!(first.pid(), all.pid());
    assert_eq!(network_on_host(&first), network_on_host(&all));
    assert_eq!(network_on_host(&first), network_on_host(&network));
}

#[test]
fn a_container_of_a_pod_goes_through_its_whole_life() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let first = runtime.started(&bundle);
    let talk = joining(Bundle::script("echo out; echo err >&2; exit 7"), &first, &ALL);
    let absent = joining(Bundle::busybox(["/nonexistent"]), &first, &ALL);
    for _ in 0..2 {
        assert_ne!(runtime.run(&absent).code, 0);
        let done = runtime.run(&talk);
        assert_eq!((done.code, done.text().as_str(), done.message().trim()), (7, "out", "err"));
    }
    let bundle = joining(Bundle::script("trap 'exit 3' TERM; echo >/ready; while :; do sleep 0.1; done"), &first, &ALL);
    let bundle = bundle.with("/linux/resources/pids", json!({"limit": 50}));
    let second = runtime.created(&bundle);
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

#[test]
fn the_process_of_the_host_and_the_container_end_together() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let first = runtime.started(&bundle);
    let marker = format!("{}", 4000 + std::process::id() % 1000);
    let bundle = joining(Bundle::busybox(["sleep", &marker]), &first, &ALL);
    let second = runtime.started(&bundle);
    let is_there = || first.exec(&["ps"]).ok().text().contains(&format!("sleep {marker}"));
    assert!(is_there());
    kill(Pid::from_raw(second.pid()), Signal::SIGKILL).unwrap();
    second.await_status("stopped");
    second.call("delete", &[]).ok();
    assert!(!is_there(), "it outlived its process on the host");
    // Its name is free again, in the machine too.
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

#[test]
fn the_pod_ends_with_its_first_container() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let first = runtime.started(&bundle);
    let joined = joining(Bundle::busybox(["sleep", "1000"]), &first, &ALL);
    let late = joining(Bundle::busybox(["true"]), &first, &ALL);
    let second = runtime.started(&joined);
    first.call("kill", &["KILL"]).ok();
    second.await_status("stopped");
    second.call("delete", &[]).ok();
    first.await_status("stopped");
    assert_ne!(runtime.run(&late).code, 0, "what has ended is joined by nobody");
}
