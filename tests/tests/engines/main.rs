//! The engines' front door: Docker, Podman and containerd, which drive vmrt as they drive runc.
//!
//! All of it happens in a network and a mount namespace of its own, so that bridges, packet filters and mounts of the
//! engines end with it.

mod containerd;
mod daemons;
mod docker;
mod podman;

use std::fs;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// A test and its name.
type Test = (&'static str, fn());

/// What the engines' networks need of the kernel, where it is not there already.
const MODULES: [&str; 9] = [
    "bridge",
    "veth",
    "nf_tables",
    "nft_compat",
    "nft_chain_nat",
    "xt_MASQUERADE",
    "xt_conntrack",
    "xt_addrtype",
    "br_netfilter",
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let modules: [(&str, &[Test]); 8] = [
        ("docker::files", docker::files::TESTS),
        ("docker::lifecycle", docker::lifecycle::TESTS),
        ("docker::limits", docker::limits::TESTS),
        ("docker::network", docker::network::TESTS),
        ("docker::process", docker::process::TESTS),
        ("docker::run", docker::run::TESTS),
        ("containerd", containerd::TESTS),
        ("podman", podman::TESTS),
    ];
    let tests = modules.into_iter().flat_map(|(module, tests)| {
        tests.iter().map(move |(name, test)| {
            Trial::test(format!("{module}::{name}"), || {
                test();
                Ok(())
            })
        })
    });
    if !arguments.list {
        isolate();
    }
    let conclusion = libtest_mimic::run(&arguments, tests.collect());
    daemons::stop();
    if conclusion.has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn isolate() {
    let loaded = Command::new("modprobe").arg("--all").args(MODULES).status();
    assert!(loaded.expect("modprobe starts").success(), "the kernel's modules were loaded");
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("namespaces of our own");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("mounts of our own");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.expect("ip starts").success(), "the loopback is up");
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("packets are forwarded");
}
