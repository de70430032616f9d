//! The layers of the VMM's jail that this host has, for `vmrt check`.

use std::fs::{self, File};
use std::os::fd::AsFd;

use nix::sched::CloneFlags;

use super::caller::Caller;
use super::mount_trees::{self, Source};
use super::spawn::can_clone;

/// The file that lists what a filter of system calls may do.
const SECCOMP_ACTIONS: &str = "/proc/sys/kernel/seccomp/actions_avail";

/// The name of each layer, and whether this host has it. Each is tried, not looked up.
pub(crate) fn layers(caller: Caller) -> Vec<(&'static str, bool)> {
    // A user needs the user namespace for the others.
    let base = match caller {
        Caller::User => CloneFlags::CLONE_NEWUSER,
        Caller::Root | Caller::NamespaceRoot => CloneFlags::empty(),
    };
    let namespaces = [
        ("user namespace", CloneFlags::CLONE_NEWUSER),
        ("mount namespace and empty root", CloneFlags::CLONE_NEWNS),
        ("pid namespace", CloneFlags::CLONE_NEWPID),
        ("ipc namespace", CloneFlags::CLONE_NEWIPC),
        ("uts namespace", CloneFlags::CLONE_NEWUTS),
        ("cgroup namespace", CloneFlags::CLONE_NEWCGROUP),
    ];
    let mut layers: Vec<_> = namespaces.into_iter().map(|(name, flag)| (name, can_clone(base | flag))).collect();
    layers.push(("shares as clones of mounts", caller != Caller::User && can_clone_mounts()));
    layers.push(("an id for each sandbox", caller != Caller::User));
    let actions = fs::read_to_string(SECCOMP_ACTIONS).unwrap_or_default();
    layers.push(("system call filters", actions.split_whitespace().any(|action| action == "trap")));
    layers
}

fn can_clone_mounts() -> bool {
    File::open("/").is_ok_and(|root| mount_trees::clone(Source { root: root.as_fd(), read_only: false }, false).is_ok())
}
