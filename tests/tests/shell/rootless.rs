//! Callers without root: a user, and the root of a user namespace.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use vmrt_tests::bundle::Bundle;
use vmrt_tests::caller::{Caller, DelegatedCgroup, USER};
use vmrt_tests::rootless_namespaces::RootlessNamespaces;
use vmrt_tests::runtime::{RunningCommand, Runtime, is_vmrt, new_id, program, wait};
use vmrt_tests::terminal::Terminal;
use vmrt_tests::{TIMEOUT, eventually};

/// The bundle, owned by the user, with the user as the container's root.
fn user_bundle(bundle: Bundle) -> Bundle {
    chown_to_user(bundle.path());
    // No gid=5: the user can map no other group.
    let terminals = json!({"type": "devpts", "source": "devpts", "destination": "/dev/pts", "options": ["newinstance", "ptmxmode=0666"]});
    let map = json!([{"containerID": 0, "hostID": USER, "size": 1}]);
    bundle
        .without_mount("/dev/pts")
        .with("/mounts/-", terminals)
        .with("/linux/namespaces/-", json!({"type": "user"}))
        .with("/linux/uidMappings", map.clone())
        .with("/linux/gidMappings", map)
}

/// Makes the user the owner of all files below a path.
fn chown_to_user(path: &Path) {
    let given = Command::new("chown").args(["-R", &format!("{USER}:{USER}")]).arg(path).status();
    assert!(given.expect("chown runs").success(), "{} is the user's", path.display());
}

fn owner(path: &Path) -> (u32, u32) {
    let metadata = path.symlink_metadata().expect("a file");
    (metadata.uid(), metadata.gid())
}

/// The cgroup v2 of a process.
fn cgroup_of(pid: &impl ToString) -> String {
    let text = fs::read_to_string(PathBuf::from("/proc").join(pid.to_string()).join("cgroup")).expect("a cgroup");
    text.lines().find_map(|line| line.strip_prefix("0::")).expect("version 2").to_owned()
}

#[test]
fn a_user_runs_a_container_with_the_specification_of_spec() {
    let runtime = Runtime::for_caller(Caller::user());
    let bundle = Bundle::busybox(["true"]);
    let file = bundle.path().join("config.json");
    fs::remove_file(&file).unwrap();
    chown_to_user(bundle.path());
    runtime.call(&["spec", "--rootless", "--bundle", bundle.path().to_str().unwrap()]).ok();
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let script = "echo id=$(id -u):$(id -g); mkdir /d; echo text >/d/file; ln -s file /d/link; mkfifo /d/fifo; \
        mknod /d/device c 1 3; echo mknod=$?; chown 5 /d/file; echo chown=$?; echo sys=$(ls -d /sys/kernel); exit 7";
    config["process"]["args"] = json!(["sh", "-c", script]);
    config["process"]["terminal"] = json!(false);
    config["root"]["readonly"] = json!(false);
    fs::write(&file, config.to_string()).unwrap();
    let done = runtime.run(&bundle);
    assert_eq!(done.code, 7, "{done:?}");
    assert_eq!(done.value("id"), "0:0");
    assert_eq!((done.value("mknod"), done.value("chown")), ("1".into(), "1".into()), "{}", done.message());
    assert_eq!(done.value("sys"), "/sys/kernel");
    for name in ["d", "d/file", "d/link", "d/fifo"] {
        assert_eq!(owner(&bundle.file(name)), (USER, USER), "{name}");
    }
    assert!(!bundle.file("d/device").exists());
}

#[test]
fn a_users_container_is_created_started_killed_and_deleted() {
    let runtime = Runtime::for_caller(Caller::user());
    let script = "trap 'exit 9' TERM; echo up >/up; while :; do sleep 0.1; done";
    let bundle = user_bundle(Bundle::script(script));
    let container = runtime.create_container(&bundle);
    assert_eq!(container.status(), "created");
    let pid = container.pid();
    assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), USER, "the VMM is the user's");
    let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_ne!(network(&pid.to_string()), network("self"));
    container.call("start", &[]).ok();
    bundle.await_file("up");
    assert!(runtime.call(&["list"]).ok().text().contains(&container.id));
    assert_eq!(container.script("id -u; exit 3").code, 3);
    if is_vmrt() {
        assert!(container.call("ps", &[]).ok().text().contains("sleep 0.1"));
        container.call("pause", &[]).ok();
        assert_eq!(container.status(), "paused");
        container.call("resume", &[]).ok();
        let stats = container.call("events", &["--stats"]).ok();
        assert!(stats.text().contains(r#""type":"stats""#), "{stats:?}");
    }
    container.call("kill", &["TERM"]).ok();
    container.await_status("stopped");
    container.call("delete", &[]).ok();
    let other = runtime.start_container(&bundle);
    other.call("delete", &["--force"]).ok();
    runtime.assert_clean();
}

#[test]
fn a_users_container_can_have_terminals() {
    let runtime = Runtime::for_caller(Caller::user());
    let bundle = user_bundle(Bundle::busybox(["sh"])).with("/process/terminal", json!(true));
    let id = new_id();
    let (mut terminal, mut second) = (Terminal::new(40, 90), Terminal::new(24, 80));
    let mut child = terminal.start(runtime.command(&["run", "--bundle"]).arg(bundle.path()).arg(&id));
    terminal.expect("# ");
    terminal.type_in("stty size; id -u\n");
    terminal.expect("40 90\r\n0\r\n");
    let mut exec = second.start(&runtime.command(&["exec", "-t", &id, "sh", "-c", "tty; exit 4"]));
    second.expect("/dev/");
    assert_eq!(wait(&mut exec), 4);
    terminal.type_in("exit 5\n");
    assert_eq!(wait(&mut child), 5);
}

#[test]
fn a_users_machine_starts_from_roots_template_or_their_own() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::for_caller(Caller::user());
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.toml");
    fs::write(&config, format!("template_dir = \"{}/templates\"", directory.path().display())).unwrap();
    chown_to_user(directory.path());
    let bundle = user_bundle(Bundle::busybox(["true"]));
    let is_restored = |options: &[&str]| {
        let run = ["run", "--timeline", "--bundle", bundle.path().to_str().unwrap()];
        let id = new_id();
        let done = runtime.call(&[options, run.as_slice(), &[id.as_str()]].concat()).ok();
        assert!(!done.message().contains("the machine boots"), "{done:?}");
        done.message().contains("vCPU restored")
    };
    assert!(is_restored(&[]), "tests/e2e-run has made root's template");
    let own = ["--config", config.to_str().unwrap()];
    let path = PathBuf::from(runtime.call(&[own.as_slice(), &["template", "create"]].concat()).ok().text());
    assert!(path.starts_with(directory.path()) && owner(&path) == (USER, USER), "{}", path.display());
    assert!(is_restored(&own));
}

#[test]
fn a_users_state_is_in_their_runtime_directory() {
    let directory = tempfile::tempdir().unwrap();
    chown(directory.path(), Some(USER), Some(USER)).unwrap();
    let user = Caller::user();
    let list = |variable: &Path| {
        let mut command = user.command(Path::new(&program()));
        RunningCommand::start(command.arg("list").env("XDG_RUNTIME_DIR", variable), None).end()
    };
    list(directory.path()).ok();
    let name = if is_vmrt() { "vmrt" } else { "runc" };
    let made = fs::metadata(directory.path().join(name)).unwrap();
    assert_eq!((made.uid(), made.mode() & 0o7777), (USER, 0o1700));
    fs::set_permissions(directory.path(), Permissions::from_mode(0o500)).unwrap();
    fs::remove_dir(directory.path().join(name)).unwrap();
    let refused = list(directory.path());
    assert!(refused.code == 1 && refused.message().contains("$XDG_RUNTIME_DIR"), "{refused:?}");
}

#[test]
fn without_a_cgroup_on_the_host_limits_hold_in_the_guest() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::for_caller(Caller::user());
    let bundle = user_bundle(Bundle::busybox(["sleep", "1000"]))
        .with("/linux/resources/memory", json!({"limit": 64 << 20}))
        .with("/linux/resources/pids", json!({"limit": 30}))
        .with("/linux/resources/cpu", json!({"quota": 50_000, "period": 100_000}));
    let container = runtime.start_container(&bundle);
    assert_eq!(cgroup_of(&container.pid()), cgroup_of(&"self"), "the VMM is where its caller is");
    let limits = || container.script("cd /sys/fs/cgroup; cat memory.max pids.max cpu.max").ok().text();
    assert_eq!(limits(), "67108864\n30\n50000 100000");
    container.call("update", &["--memory", "96M", "--pids-limit", "40", "--cpu-quota", "200000"]).ok();
    assert_eq!(limits(), "100663296\n40\n200000 100000");
    let refused = container.call("update", &["--cpu-share", "512"]);
    assert!(refused.code == 1 && refused.message().contains("cpu.shares holds on the host"), "{refused:?}");
    let allocation = container.script("head -c 120m /dev/zero | tail >/dev/null; echo end=$?").ok();
    assert_ne!(allocation.value("end"), "0", "memory ran out");
    assert_eq!(container.status(), "running", "the OOM killer of the host killed nothing");
}

#[test]
fn a_delegated_cgroup_is_used() {
    let delegated = DelegatedCgroup::new();
    let runtime = Runtime::for_caller(Caller::user().within(&delegated));
    let bundle =
        user_bundle(Bundle::busybox(["sleep", "1000"])).with("/linux/resources/memory", json!({"limit": 64 << 20}));
    let container = runtime.start_container(&bundle);
    if is_vmrt() {
        let path = cgroup_of(&container.pid());
        assert_eq!(path, format!("{}/vmrt-{}", DelegatedCgroup::PATH, container.id));
        let limit = fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.max")).unwrap();
        assert_eq!(limit.trim(), ((64 + 128 + 128) << 20).to_string());
    }
    drop(container);
    let path = DelegatedCgroup::PATH.to_owned() + "/asked-for";
    let asked = user_bundle(Bundle::busybox(["sleep", "1000"])).with("/linux/cgroupsPath", json!(path));
    let container = runtime.start_container(&asked);
    assert_eq!(cgroup_of(&container.pid()), path);
}

#[test]
fn operations_that_need_root_are_refused_by_name() {
    let runtime = Runtime::for_caller(Caller::user());
    let refused = |bundle: Bundle, words: &str| {
        let done = runtime.run(&bundle);
        assert_eq!(done.code, 1, "{done:?}");
        assert!(!is_vmrt() || done.message().contains(words), "{words}: {}", done.message());
        runtime.assert_clean();
    };
    let bundle = || user_bundle(Bundle::busybox(["true"]));
    refused(
        bundle().with("/linux/cgroupsPath", json!("/vmrt-no-users")),
        "create /sys/fs/cgroup/vmrt-no-users: permission denied",
    );
    refused(
        bundle().with("/linux/resources/cpu", json!({"shares": 512})),
        "linux.resources.cpu.shares holds on the host",
    );
    refused(
        bundle().with("/linux/uidMappings/0/size", json!(10)),
        "linux.uidMappings: a user can only map their own id",
    );
    let gid = bundle().with("/mounts/-", json!({"type": "tmpfs", "destination": "/x", "options": ["gid=5"]}));
    refused(gid, "cannot specify gid= mount options for unmapped gid");
    let mut plain = Bundle::busybox(["true"]);
    chown_to_user(plain.path());
    refused(plain, "rootless container requires user namespaces");
    plain = bundle();
    fs::set_permissions(plain.path(), Permissions::from_mode(0o700)).unwrap();
    chown(plain.path(), Some(0), Some(0)).unwrap();
    refused(plain, "permission denied");
    if !is_vmrt() {
        return;
    }
    let namespaces = ["pid", "ipc", "uts", "mount", "user"].map(|kind| json!({"type": kind}));
    let mut joined = namespaces.to_vec();
    joined.push(json!({"type": "network", "path": "/proc/1/ns/net"}));
    refused(bundle().with("/linux/namespaces", json!(joined)), "only root may join one");
    refused_without_namespaces(&runtime, &bundle());
    let systemd = runtime.call(&["--systemd-cgroup", "run", "--bundle", bundle().path().to_str().unwrap(), "scoped"]);
    assert!(systemd.code == 1 && systemd.message().contains("--systemd-cgroup is refused"), "{systemd:?}");
    let strict = bundle();
    let done = runtime.call(&["--rootless", "false", "run", "--bundle", strict.path().to_str().unwrap(), "strict"]);
    assert!(done.code == 1 && done.message().contains("create /sys/fs/cgroup/vmrt-strict"), "{done:?}");
    let flag = runtime.call(&["--rootless", "maybe", "list"]);
    assert!(flag.code == 1 && flag.message().contains("--rootless"), "{flag:?}");
}

/// Checks the error on a host that forbids user namespaces.
fn refused_without_namespaces(runtime: &Runtime, bundle: &Bundle) {
    let limit = Path::new("/proc/sys/user/max_user_namespaces");
    let before = fs::read(limit).unwrap();
    fs::write(limit, "0").unwrap();
    let done = runtime.run(bundle);
    fs::write(limit, before).unwrap();
    assert!(done.code == 1 && done.message().contains("in a user namespace of its own"), "{done:?}");
    runtime.assert_clean();
}

/// A device with restricted permissions; they are restored when dropped.
struct RestrictedDevice(&'static str, fs::Metadata);

impl RestrictedDevice {
    fn to_group(group: u32, path: &'static str) -> Self {
        let before = fs::metadata(path).expect("a device");
        chown(path, None, Some(group)).expect("a group for a device");
        fs::set_permissions(path, Permissions::from_mode(0o660)).expect("permissions for a device");
        Self(path, before)
    }
}

impl Drop for RestrictedDevice {
    fn drop(&mut self) {
        chown(self.0, None, Some(self.1.gid())).expect("the device's group");
        fs::set_permissions(self.0, self.1.permissions()).expect("the device's permissions");
    }
}

#[test]
fn kvm_access_by_group_is_enough_and_the_error_names_the_group() {
    if !is_vmrt() {
        return;
    }
    // A group that exists on every Debian.
    let _kvm = RestrictedDevice::to_group(27, "/dev/kvm");
    let bundle = user_bundle(Bundle::script("echo in"));
    let other_user = Runtime::for_caller(Caller::user()).run(&bundle);
    assert_eq!(other_user.code, 1);
    assert!(other_user.message().contains("the members of group sudo (27) may: permission denied"), "{other_user:?}");
    let member = Runtime::for_caller(Caller::user_in(27)).run(&bundle);
    assert_eq!(member.ok().text(), "in");
}

#[test]
fn a_hook_configures_the_network_of_a_users_container() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::for_caller(Caller::user());
    let make = "ip link add eth0 type veth peer name other && ip link set eth0 address 02:00:00:00:00:07 up && \
        ip address add 10.7.0.2/24 dev eth0 && ip route add default via 10.7.0.1";
    // The state on the hook's standard input contains the pid, as slirp4netns needs it.
    let script = format!(
        "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); id -u >&2; \
        exec nsenter --user --net --preserve-credentials --target $pid sh -c '{make}'"
    );
    let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]});
    let bundle = user_bundle(Bundle::script(
        "cat /sys/class/net/eth0/address; ip -o -4 address show dev eth0; ip route; sleep 1000",
    ))
    .with("/hooks/createRuntime", json!([hook]));
    let closed = RestrictedDevice::to_group(0, "/dev/net/tun");
    let refused = runtime.run(&bundle);
    drop(closed);
    let words = "open /dev/net/tun for network interface eth0: permission denied";
    assert!(refused.code == 1 && refused.message().contains(words), "{refused:?}");
    let container = runtime.start_container(&bundle);
    let seen =
        container.script("cat /sys/class/net/eth0/address; ip -o -4 address show dev eth0; ip route").ok().text();
    for words in ["02:00:00:00:00:07", "inet 10.7.0.2/24", "default via 10.7.0.1"] {
        assert!(seen.contains(words), "{words}: {seen}");
    }
    let later = Command::new("nsenter")
        .args(["--net", "--target"])
        .arg(container.pid().to_string())
        .args(["sh", "-c", "ip link set other name late up && ip address add 10.8.0.2/24 dev late"])
        .status();
    assert!(later.unwrap().success());
    let followed = eventually(TIMEOUT, || {
        container.script("ip -o -4 address show dev late").text().contains("10.8.0.2/24").then_some(())
    });
    assert!(followed.is_some(), "the guest follows what comes later");
}

#[test]
fn the_root_of_a_user_namespace_runs_containers() {
    let namespaces = RootlessNamespaces::new();
    let runtime = Runtime::for_caller(namespaces.root());
    let script = "ping -c 1 -W 20 10.9.0.1 >/dev/null; echo ping=$?; echo file >/file; chown 5:6 /file; echo chown=$?; \
        chown 20000 /file; echo far=$?; mknod /device c 1 3; echo mknod=$?; cat /ro/file; echo $?; echo x >/ro/file";
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    fs::write(directory.path().join("file"), "of the host's root").unwrap();
    let bundle = Bundle::script(script).with_capabilities().bind(directory.path(), "/ro", &["ro"]).with(
        "/linux/namespaces",
        json!([
            {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"},
            {"type": "network", "path": namespaces.network()},
        ]),
    );
    chown_to_user(bundle.path());
    let done = runtime.run(&bundle);
    assert_eq!(done.value("ping"), "0", "{done:?}");
    assert_eq!((done.value("chown"), done.value("far"), done.value("mknod")), ("0".into(), "1".into(), "1".into()));
    assert!(done.text().ends_with("of the host's root0"), "{done:?}");
    assert_eq!(owner(&bundle.file("file")), (100_004, 100_005));
    // A user that the namespace lacks can exist in the guest, but owns no files on the host.
    if is_vmrt() {
        fs::set_permissions(bundle.file("tmp"), Permissions::from_mode(0o1777)).unwrap();
        let foreign = bundle
            .with("/process/user", json!({"uid": 20_000, "gid": 0}))
            .with("/process/args", json!(["sh", "-c", "touch /tmp/new; echo touch=$?"]));
        let done = runtime.run(&foreign);
        assert!(done.value("touch") == "1" && done.message().contains("too large"), "{done:?}");
        assert!(!foreign.file("tmp/new").exists());
    }
}
