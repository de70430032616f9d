//! The namespaces a container has, and those it joins.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};

use serde_json::json;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Runtime, is_vmrt};
use vmrt_tests::{PATIENCE, eventually};

/// The network namespace a process of the host is in.
fn network_of(pid: &impl ToString) -> PathBuf {
    fs::read_link(PathBuf::from("/proc").join(pid.to_string()).join("ns/net")).expect("a network namespace")
}

/// A process that holds a network namespace of its own.
struct Holder(Child);

impl Holder {
    fn new() -> Self {
        let child = Command::new("unshare").args(["--net", "sleep", "1000"]).spawn().expect("unshare starts");
        let own = network_of(&"self");
        let moved = eventually(PATIENCE, || (network_of(&child.id()) != own).then_some(()));
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
    let container = runtime.created(&bundle);
    assert_ne!(network_of(&container.pid()), network_of(&"self"));
}

#[test]
fn the_containers_pid_is_in_the_network_namespace_that_was_named() {
    let runtime = Runtime::new();
    let holder = Holder::new();
    let bundle = Bundle::busybox(["sleep", "1000"]).with(
        "/linux/namespaces",
        json!([
            {"type": "pid"}, {"type": "network", "path": holder.path()}, {"type": "ipc"}, {"type": "uts"},
            {"type": "mount"}, {"type": "cgroup"},
        ]),
    );
    let container = runtime.started(&bundle);
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
