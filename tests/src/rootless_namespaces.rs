//! The namespaces in which rootless engines call their runtime.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::caller::{Caller, USER, user_options};
use crate::{TIMEOUT, eventually};

/// A user namespace of the user with further ids, and a network namespace in it. Its `eth0` is 10.9.0.2 and connects to the host,
/// which is 10.9.0.1. Both end when dropped.
pub struct RootlessNamespaces {
    users: Child,
    network: Child,
}

impl Default for RootlessNamespaces {
    fn default() -> Self {
        Self::new()
    }
}

impl RootlessNamespaces {
    /// Creates the namespaces. Keep the value as long as processes run in them.
    ///
    /// # Panics
    ///
    /// Panics if the host refuses.
    #[must_use]
    pub fn new() -> Self {
        let [uid, gid] = user_options();
        let unshare = ["setpriv", &uid, &gid, "--clear-groups", "unshare", "--user", "--mount", "--net"];
        let users = spawn_in_new_namespace(&unshare, ("user", namespace("user", "self")));
        for file in ["uid_map", "gid_map"] {
            // As newuidmap and newgidmap do for users with ids in /etc/subuid.
            let map = format!("0 {USER} 1\n1 100000 9999\n");
            fs::write(format!("/proc/{}/{file}", users.id()), map).expect("further ids");
        }
        let pid = users.id().to_string();
        let inside = [&enter(&pid)[..], &["unshare", "--net"]].concat();
        let network = spawn_in_new_namespace(&inside, ("net", namespace("net", &pid)));
        let namespaces = Self { users, network };
        namespaces.connect_to_host();
        namespaces
    }

    fn connect_to_host(&self) {
        let pid = self.network.id().to_string();
        ip(&["link", "add", "far", "type", "veth", "peer", "name", "eth0", "netns", &pid]);
        ip(&["address", "add", "10.9.0.1/24", "dev", "far"]);
        ip(&["link", "set", "far", "up"]);
        let inside = ["--net", "--target", &pid, "ip"];
        run("nsenter", &[&inside[..], &["address", "add", "10.9.0.2/24", "dev", "eth0"]].concat());
        run("nsenter", &[&inside[..], &["link", "set", "eth0", "up"]].concat());
    }

    /// The root of the user namespace as a caller.
    #[must_use]
    pub fn root(&self) -> Caller {
        Caller::with_prefix(&enter(&self.users.id().to_string()))
    }

    /// The path of the network namespace.
    #[must_use]
    pub fn network(&self) -> String {
        format!("/proc/{}/ns/net", self.network.id())
    }
}

impl Drop for RootlessNamespaces {
    fn drop(&mut self) {
        ip(&["link", "delete", "far"]);
        for child in [&mut self.network, &mut self.users] {
            child.kill().and_then(|()| child.wait()).expect("a holder was ended");
        }
    }
}

fn namespace(kind: &str, pid: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a namespace")
}

/// The prefix that runs a command as the root of the user namespace of a process.
fn enter(pid: &str) -> [&str; 8] {
    ["nsenter", "--user", "--mount", "--net", "--setuid=0", "--setgid=0", "--target", pid]
}

/// Starts `sleep` by these words, and waits until it is in another namespace of that kind than before.
fn spawn_in_new_namespace(words: &[&str], (kind, before): (&str, PathBuf)) -> Child {
    let mut command = Command::new(words[0]);
    let child = command.args(&words[1..]).args(["sleep", "1000"]).stdin(Stdio::null()).spawn();
    let child = child.expect("a holder starts");
    let pid = child.id().to_string();
    let outside = namespace(kind, "self");
    let moved = || Some(namespace(kind, &pid)).filter(|now| *now != before && *now != outside);
    assert!(eventually(TIMEOUT, moved).is_some(), "{words:?} made no namespace");
    child
}

fn ip(arguments: &[&str]) {
    run("ip", arguments);
}

fn run(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).status();
    assert!(done.expect("a tool runs").success(), "{program} {arguments:?}");
}
