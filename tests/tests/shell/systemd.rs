//! Cgroups by systemd. The test boots a systemd in namespaces of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{CommandResult, RunningCommand, Runtime, is_vmrt, new_id, program, wait};
use vmrt_tests::{TIMEOUT, eventually};

const BOOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shell/systemd-boot");

/// A running systemd; it ends with all its processes when dropped.
struct Systemd {
    parent: Child,
    pid: String,
    cgroup: PathBuf,
}

impl Systemd {
    fn boot() -> Self {
        let cgroup = PathBuf::from("/sys/fs/cgroup").join(new_id());
        fs::create_dir(&cgroup).expect("a cgroup for systemd");
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "sh", BOOT]).arg(&cgroup);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let parent = command.spawn().expect("unshare starts");
        let children = format!("/proc/{0}/task/{0}/children", parent.id());
        let pid =
            eventually(TIMEOUT, || fs::read_to_string(&children).ok()?.split_whitespace().next().map(str::to_owned));
        let systemd = Self { parent, pid: pid.expect("unshare has a child"), cgroup };
        // `degraded` means that a unit failed on this machine, which does not matter here.
        let is_up = || ["running", "degraded"].contains(&systemd.sh("systemctl is-system-running").text().as_str());
        let boots = eventually(TIMEOUT, || is_up().then_some(()));
        assert!(boots.is_some(), "systemd does not boot: {:?}", systemd.sh("systemctl is-system-running"));
        systemd.sh("systemctl start dbus.socket dbus.service").ok();
        systemd
    }

    /// Runs a shell script in the namespaces of this systemd.
    fn sh(&self, script: &str) -> CommandResult {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid, "--mount", "--pid", "--cgroup", "--", "sh", "-ec", script]);
        RunningCommand::start(&mut command, None).end()
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        self.parent.kill().expect("unshare runs");
        wait(&mut self.parent);
        let removed = eventually(TIMEOUT, || remove_all(&self.cgroup).ok());
        assert!(removed.is_some() || std::thread::panicking(), "{} is left", self.cgroup.display());
    }
}

/// Removes a cgroup and all cgroups in it.
fn remove_all(cgroup: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(cgroup)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove_all(&entry.path())?;
    }
    fs::remove_dir(cgroup)
}

/// Runs, updates and deletes a container by a shell script, and checks its scope.
fn run_update_and_delete(systemd: &Systemd) {
    let (id, program, root) = (new_id(), program(), "/run/state");
    let bundle = bundle(&format!("vmrt-test.slice:c:{id}"));
    let bundle = bundle.path().display();
    let done = systemd.sh(&format!(
        "runtime='{program} --root {root} --systemd-cgroup' scope=c-{id}.scope
        $runtime run --detach --bundle {bundle} --pid-file /run/pid {id} </dev/null >/run/said 2>&1 || {{ cat /run/said >&2; exit 1; }}
        show() {{ systemctl show --value --property $1 $scope; }}
        echo cgroup=$(cat /proc/$(cat /run/pid)/cgroup)
        echo slice=$(show Slice)
        echo told=$(show MemoryMax)
        echo set=$(cat /sys/fs/cgroup/vmrt.slice/vmrt-test.slice/$scope/memory.max)
        echo quota=$(show CPUQuotaPerSecUSec)
        $runtime update --cpu-period 100000 --cpu-quota 20000 {id}
        echo changed=$(show CPUQuotaPerSecUSec)
        $runtime delete --force {id}
        echo left=$(systemctl is-active $scope) $(ls -d /sys/fs/cgroup/vmrt.slice/vmrt-test.slice/$scope 2>/dev/null)"
    ));
    let done = done.ok();
    assert_eq!(done.value("cgroup"), format!("0::/vmrt.slice/vmrt-test.slice/c-{id}.scope"));
    assert_eq!((done.value("slice"), done.value("left")), ("vmrt-test.slice".into(), "inactive".into()));
    assert_eq!(done.value("told"), done.value("set"));
    if is_vmrt() {
        // Memory of the container, of the guest's kernel and agent, and of the VMM. CPU time: a quarter, or a tenth of a CPU, more.
        assert_eq!(done.value("set"), ((64 + 128 + 128) << 20).to_string());
        assert_eq!((done.value("quota"), done.value("changed")), ("630ms".into(), "300ms".into()));
    }
}

fn bundle(cgroup: &str) -> Bundle {
    Bundle::busybox(["sleep", "1000"])
        .with("/linux/cgroupsPath", json!(cgroup))
        .with("/linux/resources/memory", json!({"limit": 64 << 20}))
        .with("/linux/resources/cpu", json!({"quota": 50_000, "period": 100_000}))
}

#[test]
fn systemd_cgroup_puts_the_container_into_a_scope() {
    let _runtime = Runtime::new();
    let systemd = Systemd::boot();
    run_update_and_delete(&systemd);
}

#[test]
fn an_invalid_scope_and_a_host_without_systemd_are_refused() {
    let runtime = Runtime::new();
    for (path, message) in [("/a/b", "slice:prefix:name"), ("vmrt-test.slice:c:x", "systemd")] {
        let bundle = bundle(path);
        let mut command = runtime.command(&["--systemd-cgroup", "run", "--bundle"]);
        let done = RunningCommand::start(command.arg(bundle.path()).arg(new_id()), None).end();
        assert!(done.code == 1 && done.message().contains(message), "{done:?}");
    }
}
