//! The user and the privileges of a container's process.

use std::fs;

use super::Docker;
use crate::Test;

pub const TESTS: &[Test] = &[
    ("user_capabilities_and_seccomp_are_as_configured", user_capabilities_and_seccomp_are_as_configured),
    ("a_privileged_container_has_all_privileges_in_its_guest", a_privileged_container_has_all_privileges_in_its_guest),
];

const PROFILE: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}"#;

fn user_capabilities_and_seccomp_are_as_configured() {
    let docker = Docker::new();
    let print = "echo id=$(id -u):$(id -g); echo filter=$(grep Seccomp: /proc/self/status); \
        echo bounding=$(grep CapBnd /proc/self/status); mkdir /tmp/new && echo made=yes";
    let done = docker.script(&["--user", "1000:1001", "--cap-drop", "ALL", "--tmpfs", "/tmp:mode=1777"], print).ok();
    assert_eq!((done.value("id"), done.value("made")), ("1000:1001".into(), "yes".into()));
    assert!(done.value("filter").ends_with('2'), "Docker's own filter is on: {done:?}");
    assert!(done.value("bounding").ends_with(&"0".repeat(16)), "{done:?}");

    let folder = tempfile::tempdir().expect("a folder");
    let profile = folder.path().join("profile.json");
    fs::write(&profile, PROFILE).expect("a profile");
    let option = format!("seccomp={}", profile.display());
    let done = docker.script(&["--security-opt", &option, "--cap-drop", "KILL"], print);
    assert!(done.message().contains("Operation not permitted") && !done.text().contains("made=yes"), "{done:?}");
    let bounding = done.value("bounding");
    let bounding = bounding.split_whitespace().last().expect("a number");
    let bounding = u64::from_str_radix(bounding, 16).expect("a number");
    // CAP_CHOWN is one of Docker's defaults, CAP_KILL (5) was dropped, CAP_SYS_ADMIN (21) is not a default.
    assert_eq!(bounding & (1 | 1 << 5 | 1 << 21), 1, "{done:?}");
}

fn a_privileged_container_has_all_privileges_in_its_guest() {
    let docker = Docker::new();
    let script = "mkdir -p /mnt; mount -t tmpfs none /mnt && echo mounted=yes; echo 1 >/proc/sys/net/ipv4/ip_forward && echo set=yes; \
        echo filter=$(grep Seccomp: /proc/self/status); mkdir /sys/fs/cgroup/below && echo made=yes; \
        test -e /dev/kvm && echo kvm=yes; echo x >/dev/mine && echo written=yes";
    let done = docker.script(&["--privileged", "--device", "/dev/null:/dev/mine"], script).ok();
    for name in ["mounted", "set", "made", "written"] {
        assert_eq!(done.value(name), "yes", "{name}: {done:?}");
    }
    assert!(done.value("filter").ends_with('0') && !done.text().contains("kvm=yes"), "{done:?}");

    let done = docker.script(&["--device", "/dev/kvm"], "true");
    assert!(
        done.code != 0 && done.message().contains("/dev/kvm (character 10:232) is a device of the host"),
        "{done:?}"
    );
}
