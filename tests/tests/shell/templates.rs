//! Templates: their commands, and containers that start from them.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tempfile::TempDir;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{CommandResult, RunningCommand, Runtime, new_id};
use vmrt_tests::{TIMEOUT, eventually};

use crate::network::namespace::Network;

/// The warning of a start whose template cannot be used.
const WARNING: &str = "the machine boots, because its template cannot be used";

/// The stage of a start from a template that a boot does not have.
const RESTORED: &str = "vCPU restored";

/// A runtime with a directory of templates of its own.
struct Templates {
    runtime: Runtime,
    files: TempDir,
}

impl Templates {
    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let config = format!("template_dir = \"{}\"\n", files.path().join("templates").display());
        fs::write(files.path().join("config.toml"), config).unwrap();
        Self { runtime: Runtime::new(), files }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let config = self.files.path().join("config.toml");
        let mut command = self.runtime.command(&["--config", config.to_str().unwrap()]);
        command.args(arguments);
        command
    }

    fn start(&self, arguments: &[&str]) -> RunningCommand {
        RunningCommand::start(&mut self.command(arguments), None)
    }

    fn call(&self, arguments: &[&str]) -> CommandResult {
        self.start(arguments).end()
    }

    /// Runs a bundle with a timeline.
    fn run(&self, bundle: &Bundle) -> CommandResult {
        self.call(&["run", "--timeline", "--bundle", bundle.path().to_str().unwrap(), &new_id()])
    }

    /// Makes the template.
    fn create(&self) -> PathBuf {
        self.call(&["template", "create"]).ok().text().into()
    }

    /// All files in the directory, without the extension of templates.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.files.path().join("templates")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

/// The name of the template at `path`.
fn name(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[test]
fn containers_start_from_a_template_and_are_independent() {
    let templates = Templates::new();
    let path = templates.create();
    assert_eq!(templates.create(), path, "a second one is not made");
    let listed = templates.call(&["template", "list"]).ok().text();
    assert!(listed.lines().count() == 2 && listed.contains(&name(&path)), "{listed}");
    assert_eq!(templates.call(&["template", "verify", "--all"]).ok().text(), format!("{} is whole", name(&path)));

    let script = "import os, time; print('time=%.6f' % time.time()); \
        print('random=' + os.urandom(8).hex() + os.getrandom(8).hex()); \
        print('boot=' + open('/proc/sys/kernel/random/boot_id').read().strip()); \
        print('cpus=%d' % os.cpu_count())";
    let bundle = Bundle::debian(["python3", "-c", script]);
    let runs: Vec<_> = (0..3)
        .map(|_| {
            let before = now();
            let done = templates.run(&bundle).ok();
            let time: f64 = done.value("time").parse().unwrap();
            assert!((before - 0.01..now() + 0.01).contains(&time), "the clock: {time}, started at {before}");
            assert!(done.message().contains(RESTORED), "{done:?}");
            assert!(!done.message().contains(WARNING), "{done:?}");
            done
        })
        .collect();
    for what in ["random", "boot"] {
        let mut values: Vec<_> = runs.iter().map(|done| done.value(what)).collect();
        values.sort();
        values.dedup();
        assert_eq!(values.len(), 3, "{what}: {values:?}");
    }

    // One template serves every size. The program finds all of its machine.
    let script = "echo cpus=$(nproc); echo mib=$(($(sed -n 's/MemTotal: *//p' /proc/meminfo | cut -d' ' -f1) / 1024))";
    for (limit, quota, (mib, cpus)) in [(64_u64 << 20, 50_000, (192, "1")), (1 << 30, 200_000, (1024 + 128, "2"))] {
        let bundle = Bundle::script(script)
            .with("/linux/resources/memory", json!({"limit": limit}))
            .with("/linux/resources/cpu", json!({"quota": quota, "period": 100_000}));
        let done = templates.run(&bundle).ok();
        assert!(done.message().contains(RESTORED), "{done:?}");
        done.assert_values(&[("cpus", cpus)]);
        let found: u64 = done.value("mib").parse().unwrap();
        assert!((mib * 8 / 10..=mib).contains(&found), "{mib} MiB: {found}");
    }

    // A smaller machine than the template's boots.
    let bundle = Bundle::busybox(["true"]).with("/annotations/dev.vmrt.memory", json!("100M"));
    assert!(!templates.run(&bundle).ok().message().contains(RESTORED));

    templates.call(&["template", "rm", &name(&path)]).ok();
    assert_eq!(templates.files(), Vec::<String>::new());
    let done = templates.call(&["template", "rm", &name(&path)]);
    assert!(done.code == 1 && done.message().contains(&format!("no template {}", name(&path))), "{done:?}");
}

#[test]
fn the_network_and_exec_work_in_a_container_from_a_template() {
    let network = Network::new(14);
    let templates = Templates::new();
    templates.create();
    let ping = "ping -c 1 -w 60 10.99.14.1 >/dev/null && ping -6 -c 1 -w 60 fd99:14::1 >/dev/null && echo answered";
    let done = templates.run(&network.join(Bundle::script(ping).with_capabilities())).ok();
    assert!(done.message().contains(RESTORED) && done.text() == "answered", "{done:?}");

    let bundle = network.join(Bundle::busybox(["sleep", "1000"]));
    let id = new_id();
    // The container keeps the streams of the command.
    let mut run = templates.command(&["run", "--detach", "--bundle", bundle.path().to_str().unwrap(), &id]);
    run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(run.status().unwrap().success(), "the container starts");
    let address = templates.call(&["exec", &id, "cat", "/sys/class/net/eth0/address"]);
    assert_eq!(address.ok().text(), "02:99:00:00:00:0e");
    templates.call(&["delete", "--force", &id]).ok();
}

/// Changes a template.
type Damage = fn(&Path);

#[test]
fn a_template_that_cannot_be_used_is_replaced() {
    let templates = Templates::new();
    let bundle = Bundle::busybox(["true"]);
    let damages: [(&str, Damage); 4] = [
        ("the file is no template", |path| fs::write(path, "foreign").unwrap()),
        ("the template has format", |path| write_at(path, 8)),
        ("the checksum of the template's state is wrong", |path| write_at(path, 0x1010)),
        ("bytes, not", |path| OpenOptions::new().write(true).open(path).unwrap().set_len(64 << 20).unwrap()),
    ];
    for (cause, damage) in damages {
        let path = templates.create();
        damage(&path);
        let done = templates.run(&bundle).ok();
        let message = done.message();
        assert_eq!(message.matches(WARNING).count(), 1, "{message}");
        assert!(message.contains(cause) && !message.contains(RESTORED), "{cause}: {message}");
        let rebuilt =
            eventually(TIMEOUT, || (templates.call(&["template", "verify", "--all"]).text() != "").then_some(()));
        assert!(rebuilt.is_some(), "the template was not made again: {:?}", templates.files());
    }
    // What others may have written is not read, and not removed.
    let path = templates.create();
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    let message = templates.run(&bundle).ok().message();
    assert!(message.contains(WARNING) && message.contains("is not trusted"), "{message}");
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    assert!(templates.run(&bundle).ok().message().contains(RESTORED));
}

fn write_at(path: &Path, offset: u64) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"xxxx", offset).unwrap();
}

#[test]
fn two_makers_make_one_template_and_a_killed_one_leaves_none() {
    let templates = Templates::new();
    let makers = [(); 2].map(|()| templates.start(&["template", "create"]));
    let paths = makers.map(|maker| maker.end().ok().text());
    assert!(paths[0] == paths[1] && templates.files().len() == 1, "{paths:?}, {:?}", templates.files());
    for delay in [100, 700, 1500] {
        templates.call(&["template", "rm", "--all"]).ok();
        let mut maker = templates.start(&["template", "create"]);
        std::thread::sleep(Duration::from_millis(delay));
        maker.child.kill().unwrap();
        let _ = maker.end();
        // The VMM ends with its creator.
        templates.runtime.assert_clean();
        assert!(!templates.files().iter().any(|file| file.ends_with(".template")), "{:?}", templates.files());
    }
    let path = templates.create();
    assert_eq!(templates.files(), [path.file_name().unwrap().to_str().unwrap()]);
    assert_eq!(templates.call(&["template", "prune", "--max", "1"]).ok().text(), name(&path));
    assert_eq!(templates.files(), Vec::<String>::new());
}
