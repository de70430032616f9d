//! The host's `/proc`, `/sys` and their kind as mounts: the container gets the guest's own, or nothing.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{CommandResult, Runtime, is_vmrt};

/// A file system of the host's kernel on a directory of its own; unmounted when dropped.
struct KernelMount(TempDir);

impl KernelMount {
    /// `None` if the host's kernel has no file system of this kind.
    fn new(kind: &str) -> Option<Self> {
        let known = fs::read_to_string("/proc/filesystems").unwrap();
        known.split_ascii_whitespace().find(|word| *word == kind)?;
        let directory = tempfile::tempdir().unwrap();
        let status = Command::new("mount").args(["-t", kind, kind]).arg(directory.path()).status();
        assert!(status.expect("mount runs").success(), "{kind}");
        Some(Self(directory))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for KernelMount {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(self.0.path()).status();
        assert!(status.expect("umount runs").success());
    }
}

/// The lines of the message about the guest's own file systems.
fn warnings(done: &CommandResult) -> Vec<String> {
    done.message().lines().filter(|line| line.contains("own file systems")).map(str::to_owned).collect()
}

fn bind_all(bundle: Bundle, mounts: &[(&str, &str)], options: &[&str]) -> Bundle {
    mounts.iter().fold(bundle, |bundle, (source, place)| bundle.bind(Path::new(source), place, options))
}

#[test]
fn the_guests_proc_sys_and_cgroups_stand_in_for_the_hosts() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let script = "cd /host; echo boot=$(cat proc/sys/kernel/random/boot_id); echo kcore=$(stat -c %s proc/kcore); \
        echo stat=$(head -n 1 proc/stat | cut -c 1-3) memory=$(grep -c MemTotal proc/meminfo); echo first=$(cat proc/1/comm); \
        echo links=$(ls sys/class/net); echo controllers=$(grep -c memory sys/fs/cgroup/cgroup.controllers); \
        echo kinds=$(awk '$2 ~ \"^/host\" { print $2 \":\" $3 \":\" substr($4, 1, 2) }' /proc/mounts); \
        echo cgroup=$(grep -cx 1 /sys/fs/cgroup/cgroup.procs); \
        for file in proc/sys/kernel/domainname sys/kernel/mm/ksm/run sys/fs/cgroup/cgroup.procs; do \
        (echo 1 >$file) 2>/dev/null && echo written=$file; done; true";
    let mounts = [("/proc", "/host/proc"), ("/sys", "/host/sys")];
    let bundle = bind_all(Bundle::script(script), &mounts, &["rbind", "ro", "rslave"]);
    let done = runtime.run(&bind_all(bundle, &[("/sys/fs/cgroup", "/sys/fs/cgroup")], &["rbind"])).ok();
    done.assert_values(&[
        ("stat", "cpu memory=1"),
        ("first", "sh"),
        ("links", "lo"),
        ("controllers", "1"),
        ("kinds", "/host/proc:proc:ro /host/sys:sysfs:ro /host/sys/fs/cgroup:cgroup2:ro"),
        ("cgroup", "1"),
    ]);
    assert_ne!(done.value("boot"), fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim());
    if let Ok(kcore) = fs::metadata("/proc/kcore") {
        assert_ne!(done.value("kcore"), kcore.len().to_string());
    }
    assert!(!done.text().contains("written="), "{done:?}");
    let warnings = warnings(&done);
    let places = "/proc at /host/proc, /sys at /host/sys, /sys/fs/cgroup at /sys/fs/cgroup";
    assert!(warnings.len() == 1 && warnings[0].contains(&format!("of the host's: {places}")), "{done:?}");
}

#[test]
fn paths_in_the_guests_proc_and_sys_can_be_mounted() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let script = "echo boot=$(cat /kernel/random/boot_id); echo memory=$(grep -c MemTotal /memory); echo links=$(ls /links); \
        echo net=$(grep -c lo: /net/dev); echo inside=$(cat /proc/sys/kernel/random/boot_id); \
        echo left=$(grep -c /run/vmrt /proc/self/mountinfo)";
    let mounts = [
        ("/proc/sys/kernel", "/kernel"),
        ("/proc/meminfo", "/memory"),
        ("/sys/class/net", "/links"),
        ("/proc/net", "/net"),
    ];
    let done = runtime.run(&bind_all(Bundle::script(script), &mounts, &["rbind", "ro"])).ok();
    done.assert_values(&[("memory", "1"), ("links", "lo"), ("net", "1"), ("left", "0")]);
    assert_eq!(done.value("boot"), done.value("inside"));
    // No guest has a KVM of its own.
    let done = runtime.run(&Bundle::busybox(["true"]).bind(Path::new("/sys/module/kvm"), "/x", &["rbind"]));
    assert!(done.code == 1 && done.message().contains("open the guest's sysfs/module/kvm"), "{done:?}");
}

#[test]
fn proc_and_sys_below_a_share_are_empty() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let script = "for at in proc sys; do echo $at=$(ls -A /host/$at | wc -l):$(stat -c %a:%h /host/$at); \
        mkdir /host/$at/x 2>/dev/null && echo made=$at; ls /host/$at/kcore /host/$at/1 2>/dev/null; done; \
        echo hosts=$(cat /host/etc/hostname); echo null=$(ls /host/dev/null); true";
    let bundle = bind_all(Bundle::script(script), &[("/", "/host")], &["rbind", "rslave"]);
    let done = runtime.run(&bundle).ok();
    let hostname = fs::read_to_string("/etc/hostname").unwrap_or_default();
    done.assert_values(&[
        ("proc", "0:555:2"),
        ("sys", "0:555:2"),
        ("hosts", hostname.trim()),
        ("null", "/host/dev/null"),
    ]);
    assert!(!done.text().contains("made=") && !done.text().contains("kcore"), "{done:?}");
    assert!(warnings(&done).is_empty(), "{done:?}");
}

#[test]
fn other_views_of_the_hosts_kernel_are_refused_by_name() {
    if !is_vmrt() {
        return;
    }
    // Not below the host's own `/proc` and `/sys`, so nothing of the guest stands in for them.
    let kinds = ["proc", "sysfs", "cgroup2", "debugfs", "tracefs", "bpf", "securityfs", "configfs"];
    let mounted: Vec<_> = kinds.into_iter().filter_map(|kind| Some((kind, KernelMount::new(kind)?))).collect();
    assert!(mounted.len() > 3, "{}", mounted.len());
    let runtime = Runtime::new();
    let mut sources: Vec<_> = mounted.iter().map(|(kind, mount)| (*kind, mount.path().to_owned())).collect();
    sources.extend([("proc", "/proc/1/environ".into()), ("nsfs", "/proc/1/ns/uts".into())]);
    for (kind, source) in sources {
        let kind = if kind == "bpf" { "bpffs" } else { kind };
        let refused = format!(
            "mount {} cannot be shared with a virtual machine: it is on {kind}, a view of the host's kernel",
            source.display()
        );
        let done = runtime.run(&Bundle::busybox(["true"]).bind(&source, "/data", &["rbind", "ro"]));
        assert!(done.code == 1 && done.message().contains(&refused), "{done:?}");
    }
    let done = runtime.run(&Bundle::busybox(["true"]).with("/root/path", json!("/proc")));
    assert!(done.code == 1 && done.message().contains("it is on proc, a view of the host's kernel"), "{done:?}");
    runtime.assert_clean();
}

#[test]
fn a_container_of_a_pod_sees_only_its_own_processes_in_a_proc_mount() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let first = runtime.start_container(&bundle);
    let network = json!({"type": "network", "path": format!("/proc/{}/ns/net", first.pid())});
    let new = ["pid", "mount", "cgroup", "uts", "ipc"].map(|kind| json!({"type": kind}));
    let namespaces: Vec<_> = [network].into_iter().chain(new).collect();
    let script = "echo seen=$(cat /host/proc/[0-9]*/comm | sort | uniq); echo kernel=$(ls -d /sys/kernel); \
        echo cgroups=$(ls /sys/fs/cgroup/cgroup.procs)";
    let second = || {
        let bundle = Bundle::script(script).without_mount("/sys").without_mount("/sys/fs/cgroup");
        let bundle = bundle.with("/linux/namespaces", json!(namespaces));
        bind_all(bundle, &[("/proc", "/host/proc"), ("/sys", "/sys")], &["rbind", "ro", "nosuid", "nodev", "noexec"])
    };
    // With a user namespace of its own, the container does not own the network namespace, and cannot make a sysfs.
    for bundle in [second(), second().with_user_namespace()] {
        let done = runtime.run(&bundle).ok();
        done.assert_values(&[("kernel", "/sys/kernel"), ("cgroups", "/sys/fs/cgroup/cgroup.procs")]);
        let seen = done.value("seen");
        assert!(seen.split(' ').all(|name| ["sh", "cat", "sort", "uniq"].contains(&name)), "{seen}");
    }
}
