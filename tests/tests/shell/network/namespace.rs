//! Network namespaces of the tests, and the host's tools for networks.

use std::process::Command;

use serde_json::json;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::{TIMEOUT, eventually};

/// Runs `ip` or another tool of the host with the words of `line`, and returns its output.
pub(crate) fn tool(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().expect("a program")).args(words).output().expect("the tool starts");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

/// A network namespace whose `eth0` connects to the host, in network 10.99.NUMBER.0/24; removed when dropped.
///
/// Create it before the [`vmrt_tests::runtime::Runtime`], whose snapshot of the host then includes it.
pub(crate) struct Network {
    number: u8,
    pub(crate) name: String,
}

impl Network {
    pub(crate) fn new(number: u8) -> Self {
        let name = format!("vmrt-test-{number}");
        let network = Self { number, name };
        tool(&format!("ip netns add {}", network.name));
        network.add_interface(number, "eth0");
        network.ip("link set lo up");
        network
    }

    /// Adds an interface in the networks 10.99.NUMBER.0/24 and fd99:NUMBER::/64. The host has address 1 in both.
    pub(crate) fn add_interface(&self, number: u8, name: &str) {
        let host = format!("vh{number}");
        tool(&format!("ip link add {host} type veth peer name {name} netns {}", self.name));
        tool(&format!("ip address add 10.99.{number}.1/24 dev {host}"));
        tool(&format!("ip address add fd99:{number}::1/64 dev {host} nodad"));
        tool(&format!("ip link set {host} mtu 1400 up"));
        self.ip(&format!("link set {name} address 02:99:00:00:00:{number:02x} mtu 1400"));
        self.ip(&format!("address add 10.99.{number}.2/24 broadcast 10.99.{number}.255 dev {name}"));
        self.ip(&format!("address add fd99:{number}::2/64 dev {name} nodad"));
        self.ip(&format!("link set {name} up"));
        // The kernel reports the link as up some time later. Tests compare the state before and after, so they wait for it.
        let up = || self.ip(&format!("-o -br link show {name}")).contains(" UP ").then_some(());
        assert!(eventually(TIMEOUT, up).is_some(), "{name} does not come up");
    }

    /// Runs `ip` in the namespace.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        tool(&format!("ip -n {} {arguments}", self.name))
    }

    /// A bundle whose container joins the namespace.
    pub(crate) fn join(&self, bundle: Bundle) -> Bundle {
        let path = format!("/run/netns/{}", self.name);
        bundle.with_capabilities().with(
            "/linux/namespaces",
            json!([
                {"type": "pid"}, {"type": "network", "path": path}, {"type": "ipc"}, {"type": "uts"},
                {"type": "mount"}, {"type": "cgroup"},
            ]),
        )
    }

    /// The interfaces of the namespace and their queueing disciplines.
    pub(crate) fn inventory(&self) -> (String, String) {
        (self.ip("-o -br link"), tool(&format!("tc -n {} qdisc", self.name)))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        tool(&format!("ip netns delete {}", self.name));
        let host = format!("vh{}", self.number);
        // The kernel removes the other end of the pair some time later.
        let removed = || (!tool("ip -o link").contains(&format!(" {host}@"))).then_some(());
        let removed = eventually(TIMEOUT, removed);
        assert!(std::thread::panicking() || removed.is_some(), "{host} still exists");
    }
}
