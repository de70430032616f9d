//! Namespaces that a container has or joins.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command};

use serde_json::json;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Runtime, is_vmrt};
use vmrt_tests::{TIMEOUT, eventually};

/// The network namespace of a process of the host.
fn network_of(pid: &impl ToString) -> PathBuf {
    fs::read_link(PathBuf::from("/proc").join(pid.to_string()).join("ns/net")).expect("a network namespace")
}

/// A process that keeps a new network namespace open.
struct Holder(Child);

impl Holder {
    fn new() -> Self {
        let child = Command::new("unshare").args(["--net", "sleep", "1000"]).spawn().expect("unshare starts");
        let own = network_of(&"self");
        let moved = eventually(TIMEOUT, || (network_of(&child.id()) != own).then_some(()));
        assert!(moved.is_some(), "unshare made no namespace");
        Self(child)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/proc").join(self.0.id().to_string()).join("ns/net")
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).expect("the holder was ended");
    }
}

#[test]
fn the_containers_pid_has_a_network_namespace_of_its_own() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.create_container(&bundle);
    assert_ne!(network_of(&container.pid()), network_of(&"self"));
}

#[test]
fn the_containers_pid_is_in_the_named_network_namespace() {
    let runtime = Runtime::new();
    let holder = Holder::new();
    let bundle = Bundle::busybox(["sleep", "1000"]).with(
        "/linux/namespaces",
        json!([
            {"type": "pid"}, {"type": "network", "path": holder.path()}, {"type": "ipc"}, {"type": "uts"},
            {"type": "mount"}, {"type": "cgroup"},
        ]),
    );
    let container = runtime.start_container(&bundle);
    assert_eq!(network_of(&container.pid()), network_of(&holder.0.id()));
}

#[test]
fn the_hosts_network_is_refused() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let own = json!({"type": "network", "path": "/proc/1/ns/net"});
    for network in [own, json!({"type": "network", "path": "/proc/1/ns/mnt"})] {
        let bundle = Bundle::busybox(["true"]).with(
            "/linux/namespaces",
            json!([{"type": "pid"}, network, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]),
        );
        let done = runtime.run(&bundle);
        assert_ne!(done.code, 0);
        assert!(done.message().contains("network"), "{}", done.message());
    }
}

/// A container in a time namespace with these clocks.
fn with_clocks(bundle: Bundle, offsets: &serde_json::Value) -> Bundle {
    bundle.with("/linux/namespaces/-", json!({"type": "time"})).with("/linux/timeOffsets", offsets.clone())
}

#[test]
fn a_time_namespace_has_clocks_of_its_own() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let offsets = json!({"boottime": {"secs": 1_000_000, "nanosecs": 5}, "monotonic": {"secs": 2_000_000}});
    let script = "cat /proc/self/timens_offsets >/offsets; cut -d. -f1 /proc/uptime >/uptime; sleep 1000";
    let bundle = with_clocks(Bundle::script(script), &offsets);
    let container = runtime.start_container(&bundle);
    let uptime = |text: String| text.trim().parse::<u64>().unwrap();
    let first = eventually(TIMEOUT, || fs::read_to_string(bundle.file("uptime")).ok().filter(|text| !text.is_empty()));
    assert!((1_000_000..1_100_000).contains(&uptime(first.expect("an uptime"))));
    let words = fs::read_to_string(bundle.file("offsets")).unwrap();
    let words: Vec<_> = words.split_whitespace().collect();
    assert_eq!(words, ["monotonic", "2000000", "0", "boottime", "1000000", "5"]);
    let later = uptime(container.script("cut -d. -f1 /proc/uptime").ok().text());
    assert!((1_000_000..1_100_000).contains(&later), "an exec has the same clocks: {later}");
    drop(container);
    let plain = runtime.run(&Bundle::script("cut -d. -f1 /proc/uptime"));
    assert!(uptime(plain.ok().text()) < 1_000_000);
}

#[test]
fn time_offsets_without_a_time_namespace_are_refused() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["true"]).with("/linux/timeOffsets", json!({"boottime": {"secs": 1}}));
    let done = runtime.run(&bundle);
    if is_vmrt() {
        assert_eq!(done.code, 1);
        assert!(done.message().contains("linux.timeOffsets: boottime: needs a time namespace"), "{}", done.message());
    }
}

#[test]
fn an_exec_runs_on_the_configured_cpus() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::script("grep Cpus_allowed_list /proc/self/status >/first; sleep 1000")
        .with("/annotations/dev.vmrt.vcpus", json!("2"))
        .with("/process/execCPUAffinity", json!({"initial": "0", "final": "1"}));
    let container = runtime.start_container(&bundle);
    bundle.await_file("first");
    let list = |text: String| text.trim().rsplit('\t').next().unwrap_or_default().to_owned();
    assert_eq!(list(container.exec(&["grep", "Cpus_allowed_list", "/proc/self/status"]).ok().text()), "1");
    let first = || Some(list(fs::read_to_string(bundle.file("first")).ok()?)).filter(|list| !list.is_empty());
    assert_ne!(eventually(TIMEOUT, first).as_deref(), Some("1"), "the first process is not bound");
}

#[test]
fn namespaces_of_the_host_are_refused_by_name() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let kinds =
        [("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("mount", "mnt"), ("cgroup", "cgroup")];
    let refused = |joined: &str, path: Option<&str>| {
        let namespace = |(kind, _): (&str, &str)| match path {
            Some(path) if kind == joined => Some(json!({"type": kind, "path": path})),
            None if kind == joined => None,
            _ => Some(json!({"type": kind})),
        };
        let namespaces: Vec<_> = kinds.into_iter().filter_map(namespace).collect();
        let bundle = Bundle::busybox(["true"]).without("/hostname").with("/linux/namespaces", json!(namespaces));
        let done = runtime.run(&bundle);
        assert_eq!(done.code, 1, "{joined}: {done:?}");
        done.message()
    };
    for (kind, file) in kinds.into_iter().filter(|(kind, _)| *kind != "network") {
        let path = format!("/proc/self/ns/{file}");
        assert!(refused(kind, Some(&path)).contains(&format!("namespace {path} is not supported")), "{kind}");
    }
    for (kind, file) in kinds.into_iter().filter(|(kind, _)| *kind != "cgroup") {
        let words = format!("the host's {file} namespace is refused");
        assert!(refused(kind, None).contains(&words), "{words}: {}", refused(kind, None));
    }
}

#[test]
fn a_user_namespace_has_the_configured_mappings() {
    let runtime = Runtime::new();
    let script = "echo gone >/dev/null && echo out >/dev/stdout && mkdir /mnt && mount -t tmpfs none /mnt && hostname other && \
        touch /made && exec sleep 1000";
    let bundle = Bundle::script(script).with_capabilities().with_user_namespace().with("/hostname", json!("mapped"));
    let container = runtime.start_container(&bundle);
    assert!(
        eventually(TIMEOUT, || bundle.path().join("rootfs/made").exists().then_some(())).is_some(),
        "{}",
        container.status()
    );
    let done = container.script(
        "echo id=$(id -u); echo map=$(cat /proc/1/uid_map); echo made=$(stat -c %u:%g /made); echo name=$(hostname); \
        echo null=$(stat -c %t:%T /dev/null); grep -c ' /mnt tmpfs' /proc/1/mounts; echo out >/dev/stdout",
    );
    let done = done.ok();
    assert_eq!(done.value("id"), "0");
    assert_eq!(done.value("map").split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"]);
    assert_eq!(
        (done.value("made"), done.value("name"), done.value("null")),
        ("0:0".into(), "other".into(), "1:3".into())
    );
    assert!(done.text().ends_with("1\nout"), "{done:?}");
    let made = fs::metadata(bundle.path().join("rootfs/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (100_000, 200_000), "the host sees the mapped user");
    let user =
        runtime.call(&["exec", "--user", "7:8", &container.id, "sh", "-c", "id -u; id -g; echo out >/dev/stdout"]);
    assert_eq!(user.ok().text(), "7\n8\nout");
}

#[test]
fn a_user_namespace_and_its_mappings_require_each_other() {
    let runtime = Runtime::new();
    let without = Bundle::busybox(["true"]).with("/linux/namespaces/-", json!({"type": "user"}));
    assert!(runtime.run(&without).message().contains("uid"), "no mappings");
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 10}]);
    let alone = Bundle::busybox(["true"]).with("/linux/uidMappings", map.clone()).with("/linux/gidMappings", map);
    let done = runtime.run(&alone);
    assert!(done.code == 1 && done.message().contains("user namespace"), "{done:?}");
    let outside = Bundle::busybox(["true"]).with_user_namespace().with("/process/user/uid", json!(70_000));
    assert_eq!(runtime.run(&outside).code, 1);
}
