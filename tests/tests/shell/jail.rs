//! The jail of a running VMM: what its process and its threads have, and what its descriptors refer to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};
use serde_json::json;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Runtime, is_vmrt};
use vmrt_tests::{TIMEOUT, eventually};

/// The capabilities of the file server: `CHOWN`, `DAC_OVERRIDE`, `FOWNER`, `FSETID`, `SETGID`, `SETUID`, `MKNOD` and `SETFCAP`.
const FILE_SERVER: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 27 | 1 << 31;

/// The first of the ids that sandboxes of the host's root have.
const FIRST_ID: u32 = 0x7000_0000;

/// The fields of `/proc/PID/status` or that of a thread.
struct Status(BTreeMap<String, String>);

impl Status {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path.join("status")).unwrap();
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        Self(fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
    }

    fn field(&self, name: &str) -> &str {
        &self.0[name]
    }

    fn capabilities(&self, set: &str) -> u64 {
        u64::from_str_radix(self.field(set), 16).unwrap()
    }

    /// Real, effective, saved and file-system id.
    fn ids(&self, name: &str) -> Vec<u32> {
        self.field(name).split_whitespace().map(|id| id.parse().unwrap()).collect()
    }
}

fn threads(pid: i32) -> Vec<PathBuf> {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn link(path: impl AsRef<Path>) -> String {
    fs::read_link(path).unwrap().display().to_string()
}

/// Checks the ids, capabilities and filters of a thread.
fn check_thread(path: &Path) {
    let status = Status::read(path);
    let name = status.field("Name").to_owned();
    let serves_files = name.starts_with("fs");
    let has_capabilities = serves_files || name == "sockets";
    for field in ["Uid", "Gid"] {
        let ids = status.ids(field);
        assert!(ids[..3].iter().all(|id| *id >= FIRST_ID && *id == ids[0]), "{name}: {ids:?}");
        assert_eq!(ids[3], if serves_files { 0 } else { ids[0] }, "{name}: {ids:?}");
    }
    let expected = if has_capabilities { FILE_SERVER } else { 0 };
    for (set, expected) in
        [("CapEff", expected), ("CapPrm", expected), ("CapBnd", FILE_SERVER), ("CapInh", 0), ("CapAmb", 0)]
    {
        assert_eq!(status.capabilities(set), expected, "{name}: {set}");
    }
    assert_eq!(status.field("Groups"), "", "{name}");
    assert_eq!((status.field("NoNewPrivs"), status.field("Seccomp")), ("1", "2"), "{name}");
}

/// The ids of the mounts of shares that a process has: all but its root, a tmpfs.
fn mounts_of_shares(process: &Path) -> BTreeSet<String> {
    let mounts = fs::read_to_string(process.join("mountinfo")).unwrap();
    let shares = mounts.lines().filter(|line| !line.contains(" - tmpfs "));
    shares.filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect()
}

/// What the descriptor `number` of a process refers to.
fn kind(process: &Path, number: &str, shares: &BTreeSet<String>) -> Option<String> {
    let path = process.join("fd").join(number);
    let target = fs::read_link(&path).ok()?.display().to_string();
    let info = fs::read_to_string(process.join("fdinfo").join(number)).ok()?;
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).unwrap_or_default().trim();
    let is_proc = statfs(&path).is_ok_and(|fs| fs.filesystem_type() == PROC_SUPER_MAGIC);
    Some(match target {
        _ if shares.contains(mount) => "file of a share".to_owned(),
        target if target.ends_with("/vmm.log") => "log".to_owned(),
        target if target.ends_with("/exit") => "exit status".to_owned(),
        target if target.starts_with("socket:") || target.starts_with("pipe:") => {
            target.split(':').next().unwrap().to_owned()
        }
        target if target.ends_with("vmlinux") || target.ends_with("initramfs.cpio") => "boot file".to_owned(),
        // Standard streams of the test.
        target if target.ends_with(" (deleted)") => "deleted file".to_owned(),
        target if target == "/" && is_proc => "descriptors".to_owned(),
        target => target,
    })
}

#[test]
fn a_running_vmm_has_only_what_it_needs() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"])
        .with("/process/oomScoreAdj", json!(123))
        .with("/linux/resources/memory", json!({"limit": 268_435_456}));
    let container = runtime.start_container(&bundle);
    let pid = container.pid();
    let process = PathBuf::from(format!("/proc/{pid}"));

    let threads = threads(pid);
    threads.iter().for_each(|thread| check_thread(thread));
    let names: BTreeSet<String> =
        threads.iter().map(|thread| fs::read_to_string(thread.join("comm")).unwrap().trim().to_owned()).collect();
    let expected =
        ["fs-blocking0", "fs-blocking1", "fs-blocking2", "fs-blocking3", "fs0", "sockets", "vcpu0", "vmrt-vmm"];
    assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), expected);

    for kind in ["user", "mnt", "pid", "ipc", "uts", "cgroup", "net"] {
        let own = link(format!("/proc/self/ns/{kind}"));
        assert_ne!(link(process.join("ns").join(kind)), own, "{kind}");
    }
    assert_eq!(fs::read_dir(process.join("root")).unwrap().count(), 0, "the root directory is empty");
    assert_eq!(fs::read_dir(process.join("cwd")).unwrap().count(), 0, "so is the working directory");
    let mounts = fs::read_to_string(process.join("mountinfo")).unwrap();
    let root = mounts.lines().find(|line| line.contains(" - tmpfs ")).unwrap_or_else(|| panic!("{mounts}"));
    for option in ["ro,", "nosuid", "nodev", "noexec"] {
        assert!(root.contains(option), "{root}");
    }
    assert_eq!(fs::read(process.join("environ")).unwrap(), b"");
    assert_eq!(fs::read_to_string(process.join("oom_score_adj")).unwrap().trim(), "123");
    let limits = fs::read_to_string(process.join("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"], "{core}");

    let shares = mounts_of_shares(&process);
    assert_eq!(shares.len(), 1, "the root file system");
    let numbers = fs::read_dir(process.join("fd")).unwrap();
    let numbers = numbers.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let kinds: BTreeSet<String> = numbers.filter_map(|number| kind(&process, &number, &shares)).collect();
    let expected = [
        "/dev/kvm",
        "/dev/net/tun",
        "/dev/null",
        "anon_inode:[eventfd]",
        "anon_inode:[eventpoll]",
        "anon_inode:[signalfd]",
        "anon_inode:[timerfd]",
        "anon_inode:kvm-vcpu:0",
        "anon_inode:kvm-vm",
        "boot file",
        "deleted file",
        "descriptors",
        "exit status",
        "file of a share",
        "log",
        "pipe",
        "socket",
    ];
    let unexpected: Vec<_> = kinds.iter().filter(|kind| !expected.contains(&kind.as_str())).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
}

#[test]
fn two_sandboxes_have_different_ids() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let [first, second] = [(); 2].map(|()| runtime.start_container(&bundle));
    let id = |pid: i32| Status::read(Path::new(&format!("/proc/{pid}"))).ids("Uid")[1];
    assert_ne!(id(first.pid()), id(second.pid()));
}

#[test]
fn the_helper_ends_with_its_vmm() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    let helper = || {
        let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
        processes.into_iter().find(|process| {
            let line = fs::read(process.join("cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|byte| *byte == 0).collect();
            words.contains(&b"sandbox-helper".as_slice()) && words.contains(&container.id.as_bytes())
        })
    };
    let running = helper().expect("a helper runs");
    let cgroup = |process: &Path| fs::read_to_string(process.join("cgroup")).unwrap();
    let vmm = PathBuf::from(format!("/proc/{}", container.pid()));
    assert_eq!(cgroup(&running), cgroup(&vmm), "in the cgroup of the VMM");
    let descriptors = fs::read_dir(running.join("fd")).unwrap().map(|entry| link(entry.unwrap().path()));
    let is_needed = |target: &String| target.starts_with("socket:") || target.ends_with("/vmm.log");
    let others: Vec<_> = descriptors.filter(|target| !is_needed(target)).collect();
    assert!(others.is_empty(), "{others:?}");
    container.call("kill", &["KILL"]).ok();
    assert!(eventually(TIMEOUT.min(Duration::from_secs(20)), || helper().is_none().then_some(())).is_some());
}

/// A runtime's command whose VMM is taken over, with a script in the place of the VMM. No template is made of such a VMM.
fn with_attack(runtime: &Runtime, attack: &[&str], arguments: &[&str]) -> (std::process::Command, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("vmm");
    let program = env!("CARGO_BIN_EXE_taken-over-vmm");
    fs::write(&script, format!("#!/bin/sh\nexec {program} {} -- \"$@\"\n", attack.join(" "))).unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let config = dir.path().join("config.toml");
    fs::write(&config, "template = false").unwrap();
    let mut command = runtime.command(&["--config", config.to_str().unwrap()]);
    command.args(arguments).env("VMRT_VMM", script);
    (command, dir)
}

#[test]
fn a_forbidden_system_call_ends_the_vmm_and_the_error_names_it() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["true"]);
    // Name of the attack, system call in the message, and the classes that try it.
    let attacks = [
        ("execve", "execve", "file-server"),
        ("execveat", "execveat", "vcpu"),
        ("fork", "clone", "event-loop"),
        ("vfork", "vfork", "file-server"),
        ("ptrace", "ptrace", "file-server"),
        ("mount", "mount", "file-server"),
        ("move_mount", "move_mount", "file-server"),
        ("pivot_root", "pivot_root", "file-server"),
        ("setns", "setns", "file-server"),
        ("unshare", "unshare", "event-loop"),
        ("setuid", "setuid", "file-server"),
        ("kill", "kill", "event-loop"),
        ("signal-other", "tgkill", "vcpu"),
        ("bpf", "bpf", "file-server"),
        ("keyctl", "keyctl", "file-server"),
        ("io_uring_setup", "io_uring_setup", "file-server"),
        ("process_vm_readv", "process_vm_readv", "vcpu"),
        ("open_by_handle_at", "open_by_handle_at", "file-server"),
        ("userfaultfd", "userfaultfd", "event-loop"),
        ("perf_event_open", "perf_event_open", "file-server"),
        ("openat", "openat", "vcpu"),
        ("openat", "openat", "event-loop"),
        ("socket-netlink", "socket", "host-sockets"),
        ("ioctl-other", "ioctl", "event-loop"),
        ("mmap-exec", "mmap", "file-server"),
        ("mprotect-exec", "mprotect", "vcpu"),
        ("rt_sigaction", "rt_sigaction", "event-loop"),
    ];
    for (attack, call, class) in attacks {
        let id = vmrt_tests::runtime::new_id();
        let arguments = ["run", "--bundle", bundle.path().to_str().unwrap(), &id];
        let (mut command, _dir) = with_attack(&runtime, &["call", class, attack], &arguments);
        let done = vmrt_tests::runtime::RunningCommand::start(&mut command, None).end();
        let message = done.message();
        assert_ne!(done.code, 0, "{attack}");
        assert!(
            message.contains("the jail ended the VMM") && message.contains(&format!("({call})")),
            "{attack}: {message}"
        );
        let words = match class {
            "file-server" => "file server",
            "vcpu" => "vCPU",
            "event-loop" => "event loop",
            _ => "host sockets",
        };
        assert!(message.contains(words), "{attack}: {message}");
    }
    runtime.assert_clean();
}

/// Starts a container in the background whose VMM makes `call` after its start. Returns the container's state once it is stopped, and its log.
fn state_after(runtime: &Runtime, call: &str) -> (serde_json::Value, String) {
    let bundle = Bundle::script("echo text >/file; while :; do sync /file; sleep 0.1; done");
    let id = vmrt_tests::runtime::new_id();
    let arguments = ["run", "--detach", "--bundle", bundle.path().to_str().unwrap(), &id];
    let (mut command, _dir) = with_attack(runtime, &["when-told", call], &arguments);
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    assert!(command.status().unwrap().success());
    let state = || serde_json::from_str::<serde_json::Value>(&runtime.call(&["state", &id]).ok().text()).unwrap();
    assert_eq!((&state()["status"], &state()["error"]), (&json!("running"), &serde_json::Value::Null));
    fs::write(bundle.file("go"), "").unwrap();
    let stopped = eventually(TIMEOUT, || Some(state()).filter(|state| state["status"] == "stopped"));
    let log = fs::read_to_string(runtime.root().join(&id).join("vmm.log")).unwrap();
    let list = runtime.call(&["list", "--format", "json"]).ok().text();
    let list: Vec<serde_json::Value> = serde_json::from_str(&list).unwrap();
    let stopped = stopped.unwrap_or_else(|| panic!("{call}: {log}"));
    assert_eq!(list.iter().find(|state| state["id"] == json!(id)).unwrap()["error"], stopped["error"], "{list:?}");
    runtime.call(&["delete", "--force", &id]).ok();
    (stopped, log)
}

#[test]
fn the_state_and_the_log_say_what_ended_a_vmm() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let ends = [
        ("ptrace", "the jail ended the VMM: a thread of class file server made system call 101 (ptrace)"),
        (
            "process_vm_writev",
            "the jail ended the VMM: a thread of class file server made system call 311 (process_vm_writev)",
        ),
        ("socket-netlink", "the jail ended the VMM: a thread of class file server made system call 41 (socket)"),
        ("fault", "the VMM crashed: a thread of class file server got signal SIGSEGV"),
        ("abort", "the VMM crashed: a thread of class file server got signal SIGABRT"),
    ];
    for (call, words) in ends {
        let (state, log) = state_after(&runtime, call);
        assert_eq!(state["error"], json!(format!("vmrt-vmm ended unexpectedly: {words}")), "{state}");
        assert_eq!(state["exitStatus"], serde_json::Value::Null, "{state}");
        assert!(log.contains(&format!(" ERROR {words}\n")), "{log}");
    }
    runtime.assert_clean();
}

#[test]
fn a_vmm_that_was_taken_over_reaches_no_file_of_the_host() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let secret = tempfile::NamedTempFile::new().unwrap();
    let other_bundle = Bundle::busybox(["sleep", "1000"]);
    let other = runtime.start_container(&other_bundle);
    let state = runtime.root().join(&other.id).join("state.json");
    let other_pid = other.pid();
    let paths = [
        "/etc/shadow".to_owned(),
        secret.path().display().to_string(),
        state.display().to_string(),
        other_bundle.path().join("config.json").display().to_string(),
        format!("/proc/{other_pid}/mem"),
        format!("/proc/{other_pid}/environ"),
        "/proc/1/status".to_owned(),
        "/dev/null".to_owned(),
        "/sys/kernel/uevent_seqnum".to_owned(),
    ];
    for path in &paths {
        assert!(Path::new(path).exists(), "{path}");
    }
    let bundle = Bundle::script("echo text >/file; sync /file; while :; do sleep 1; done");
    let id = vmrt_tests::runtime::new_id();
    let arguments = ["run", "--detach", "--bundle", bundle.path().to_str().unwrap(), &id];
    let attack: Vec<&str> = std::iter::once("read").chain(paths.iter().map(String::as_str)).collect();
    let (mut command, _dir) = with_attack(&runtime, &attack, &arguments);
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    assert!(command.status().unwrap().success());
    let log = runtime.root().join(&id).join("vmm.log");
    let report = eventually(TIMEOUT, || {
        let text = fs::read_to_string(&log).ok()?;
        text.lines().find(|line| line.contains("files were read")).map(str::to_owned)
    });
    let report = report.expect("the attack ran");
    runtime.call(&["delete", "--force", &id]).ok();
    assert!(report.contains(&format!("attack: 0 of {} files", paths.len())), "{report}");
}

#[test]
fn a_vmm_that_was_taken_over_cannot_write_on_read_only_volumes_and_roots() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let volumes = [(); 4].map(|()| tempfile::tempdir().unwrap());
    let [copy, follows, every, writable] = &volumes;
    let script = "while :; do ls /copy /follows /every /writable; sync /writable/file; sleep 0.1; done >/dev/null";
    let bundle = Bundle::script(script)
        .with("/root/readonly", json!(true))
        .bind(copy.path(), "/copy", &["bind", "ro"])
        .bind(follows.path(), "/follows", &["rbind", "ro"])
        .bind(every.path(), "/every", &["rbind", "rro"])
        .bind(writable.path(), "/writable", &["rbind"]);
    fs::write(writable.path().join("file"), "").unwrap();
    let id = vmrt_tests::runtime::new_id();
    let arguments = ["run", "--detach", "--bundle", bundle.path().to_str().unwrap(), &id];
    let (mut command, _dir) = with_attack(&runtime, &["write"], &arguments);
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    assert!(command.status().unwrap().success());
    fs::write(writable.path().join("go"), "").unwrap();
    let log = runtime.root().join(&id).join("vmm.log");
    let report = eventually(TIMEOUT, || {
        let text = fs::read_to_string(&log).ok()?;
        text.lines().find_map(|line| Some(line.split_once("attack: planted ")?.1.to_owned()))
    });
    runtime.call(&["delete", "--force", &id]).ok();
    let report = report.expect("the attack ran");
    let (planted, read_only) = report.split_once(", read-only ").unwrap();
    assert_eq!(planted, "1", "on the writable volume: {report}");
    assert!(read_only.parse::<u32>().unwrap() >= 4, "{report}");
    assert!(writable.path().join("planted").is_dir());
    for path in [copy.path(), follows.path(), every.path(), &bundle.path().join("rootfs")] {
        assert!(!path.join("planted").exists(), "{}", path.display());
    }
}
