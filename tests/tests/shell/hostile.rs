//! Attacks by a container's files, configuration and processes, as published for other runtimes, and floods.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{CommandResult, Container, RunningCommand, Runtime, is_vmrt};

use crate::pods::{ALL, join_namespaces};

/// More descriptors than the agent and the process that becomes a container's have open.
const DESCRIPTORS: u32 = 20;

/// Prints whether the working directory is in the container.
const WHERE: &str =
    "cd ../../../../../../../../.. && [ . -ef / ] && echo inside || echo outside; readlink /proc/self/cwd";

/// Prints what masked and read-only paths let a process do.
const RESTRICTIONS: &str = "echo kcore=$(head -c 1 /proc/kcore 2>/dev/null | wc -c); \
    (echo >/proc/sys/kernel/core_pattern) 2>/dev/null && echo pattern=written || echo pattern=refused; \
    [ -e /proc/self/status ] && echo proc=there || echo proc=missing";

fn starts(runtime: &Runtime, bundle: &Bundle) -> RunningCommand {
    let id = vmrt_tests::runtime::new_id();
    RunningCommand::start(runtime.command(&["run", "--bundle"]).arg(bundle.path()).arg(id), None)
}

/// A container of the pod of `first`.
fn in_pod(bundle: Bundle, first: &Container<'_>) -> Bundle {
    join_namespaces(bundle, first, &ALL)
}

#[track_caller]
fn assert_inside(what: &str, done: &CommandResult) {
    match done.code {
        0 => assert_eq!(done.text(), "inside\n/", "{what}: {done:?}"),
        _ => assert!(!done.message().is_empty() && done.text().is_empty(), "{what}: {done:?}"),
    }
}

#[test]
fn no_descriptor_leads_out_of_a_container() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    for number in 0..DESCRIPTORS {
        let link = format!("/proc/self/fd/{number}");
        let exec =
            |arguments: &[&str]| RunningCommand::start(&mut runtime.command(&[&["exec"], arguments].concat()), None);
        let pod = in_pod(Bundle::script(WHERE).with("/process/cwd", json!(link)), &container);
        let program = in_pod(Bundle::busybox([link.as_str()]), &container);
        let runs = [starts(&runtime, &pod), exec(&["--cwd", &link, &container.id, "sh", "-c", WHERE])];
        let programs = [starts(&runtime, &program), exec(&[&container.id, &link])];
        runs.into_iter().for_each(|run| assert_inside(&link, &run.end()));
        for run in programs {
            let done = run.end();
            assert!(done.code != 0 && !done.message().is_empty(), "{link} was executed: {done:?}");
        }
    }
    assert_eq!(container.status(), "running");
}

#[test]
fn the_agents_program_cannot_be_written() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]).privileged();
    fs::write(bundle.file("evil"), "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(bundle.file("evil"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let container = runtime.start_container(&bundle);
    // A process that is about to become one of the container, or that executes `/proc/self/exe`, is the agent's program.
    let watch = "touch /ready; until [ -e /end ]; do for exe in /proc/[0-9]*/exe; do \
        { true >>$exe; } 2>/dev/null && echo written $(readlink $exe); done; done; echo done";
    let watch = RunningCommand::start(&mut runtime.command(&["exec", &container.id, "sh", "-c", watch]), None);
    bundle.await_file("ready");
    for _ in 0..5 {
        for program in ["/proc/self/exe", "/evil"] {
            assert_ne!(container.exec(&[program]).code, 0, "{program}");
        }
    }
    fs::write(bundle.file("end"), "").unwrap();
    assert_eq!(watch.end().ok().text(), "done");
    assert_eq!(container.script("echo works").ok().text(), "works");
}

/// Replaces a file or an empty directory of the root file system by a link.
fn replace_by_link(bundle: &Bundle, path: &str, target: &str) {
    let file = bundle.file(path);
    let _ = fs::remove_dir_all(&file).or_else(|_| fs::remove_file(&file));
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    symlink(target, &file).unwrap();
}

#[test]
fn links_in_place_of_mount_points_and_devices_lead_nowhere() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let first = runtime.start_container(&bundle);
    let links = [
        ("proc", "/tmp"),
        ("proc", "../../../../../../proc"),
        ("sys", "/etc"),
        ("dev", "/tmp"),
        ("dev", "/proc"),
        ("dev", "../../../../../../dev"),
    ];
    for (link, target) in links {
        let bundle = in_pod(Bundle::script(RESTRICTIONS), &first);
        replace_by_link(&bundle, link, target);
        let done = runtime.run(&bundle);
        check(&format!("/{link} -> {target}"), &done);
        assert!(done.code != 0 || link == "dev", "/{link} -> {target}: {done:?}");
    }
    // Without a mount on /dev, the devices are made in the root file system.
    let devices = [
        ("dev/null", "/proc/sysrq-trigger"),
        ("dev/null", "/etc/passwd"),
        ("dev/null", "../../../../../../dev/kmsg"),
        ("dev/zero", "/proc/self/fd/5"),
        ("dev/pts", "/proc"),
        ("dev/console", "/proc/sys/kernel/core_pattern"),
    ];
    for (link, target) in devices {
        let bundle =
            in_pod(Bundle::script(RESTRICTIONS), &first).without_mount("/dev").with("/process/terminal", json!(false));
        replace_by_link(&bundle, link, target);
        check(&format!("/{link} -> {target}"), &runtime.run(&bundle));
        assert!(bundle.file(link).is_symlink() || !bundle.file(link).exists(), "/{link} was written through");
    }
    assert_eq!(first.script(RESTRICTIONS).ok().value("proc"), "there");
}

/// Either the container is refused with a message, or it runs with its restrictions.
#[track_caller]
fn check(what: &str, done: &CommandResult) {
    match done.code {
        0 => done.assert_values(&[("kcore", "0"), ("pattern", "refused")]),
        _ => assert!(!done.message().is_empty(), "{what}: {done:?}"),
    }
}

#[test]
fn mount_points_that_change_to_links_during_a_start_lead_nowhere() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let first = runtime.start_container(&bundle);
    let mount = |path: &str| json!({"type": "tmpfs", "source": "tmpfs", "destination": path});
    let victim = in_pod(Bundle::script(RESTRICTIONS), &first)
        .with("/mounts/-", mount("/data/deep"))
        .with("/linux/maskedPaths/-", json!("/data/secret"));
    fs::create_dir_all(victim.file("data/deep")).unwrap();
    fs::write(victim.file("data/secret"), "secret").unwrap();
    symlink("/proc/1/root/proc", victim.file("link")).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let paths = [victim.file("data"), victim.file("link")];
                renameat_with(CWD, &paths[0], CWD, &paths[1], RenameFlags::EXCHANGE).unwrap();
            }
        });
        let results: Vec<_> = (0..8).map(|_| runtime.run(&victim)).collect();
        done.store(true, Ordering::Relaxed);
        for result in results {
            check("a swapped mount point", &result);
        }
    });
}

#[test]
fn a_volume_with_a_size_fills_up_alone() {
    let runtime = Runtime::new();
    let volume = tempfile::tempdir().unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=2m,nr_inodes=100", "small"];
    assert!(Command::new("mount").args(mount).arg(volume.path()).status().unwrap().success());
    // The host frees the files when the guest's kernel has forgotten them.
    let fill = "dd if=/dev/zero of=/volume/bytes bs=64k 2>/1; echo bytes=$?; grep -c 'No space left' /1; \
        rm /volume/bytes; i=0; while true >/volume/$i; do i=$((i + 1)); done 2>/2; echo inodes=$i; \
        grep -c 'No space left' /2; echo text >/root-file && echo root=works; rm /volume/*; \
        i=0; until echo text >/volume/again || [ $i -eq 50 ]; do i=$((i + 1)); sleep 0.1; done 2>/3; \
        echo again=$(cat /volume/again)";
    let done = runtime.run(&Bundle::script(fill).bind(volume.path(), "/volume", &["rw"]));
    assert!(Command::new("umount").arg(volume.path()).status().unwrap().success());
    let done = done.ok();
    done.assert_values(&[("bytes", "1"), ("root", "works"), ("again", "text")]);
    let inodes: u32 = done.value("inodes").parse().unwrap();
    assert!((90..100).contains(&inodes), "{inodes}");
    assert_eq!(done.text().lines().filter(|line| *line == "1").count(), 2, "both times the error is ENOSPC: {done:?}");
}

#[test]
fn floods_of_output_connections_and_kernel_messages_are_bounded() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle =
        Bundle::debian(["sleep", "1000"]).privileged().with("/linux/sysctl", json!({"net.vsock.enabled": "1"})).with(
            "/linux/devices",
            json!([{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666}]),
        );
    let container = runtime.start_container(&bundle);
    let connections = "import socket, time\nend = time.time() + 8\nn = 0\nwhile time.time() < end:\n \
        s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)\n s.settimeout(1)\n try: s.connect((2, 2000 + n % 9))\n \
        except OSError: n += 1\n s.close()\nprint(n)";
    let messages = "i=0; while [ $i -lt 500 ]; do echo \"<0>vmrt ERROR flood $i $(printf '\\033[2J')\" >/dev/kmsg; i=$((i + 1)); done";
    let exec = |arguments: &[&str]| {
        RunningCommand::start(&mut runtime.command(&[&["exec", &container.id], arguments].concat()), None)
    };
    let connections = exec(&["python3", "-c", connections]);
    let messages = exec(&["sh", "-c", messages]);
    let mut output = runtime.command(&["exec", &container.id, "timeout", "8", "yes"]);
    let mut output = output.stdout(std::process::Stdio::null()).spawn().unwrap();
    thread::sleep(Duration::from_secs(2));
    let begun = Instant::now();
    assert_eq!(container.script("echo works").ok().text(), "works");
    assert_eq!(container.status(), "running");
    assert!(begun.elapsed() < Duration::from_secs(20), "an exec took {:?} meanwhile", begun.elapsed());
    vmrt_tests::runtime::wait(&mut output);
    let refused: u32 = connections.end().ok().text().parse().unwrap();
    messages.end().ok();
    assert!(refused > 100, "{refused} connections were refused");
    let log = fs::read(runtime.root().join(&container.id).join("vmm.log")).unwrap();
    assert!(log.len() < (1 << 20) + (64 << 10), "the log has {} bytes", log.len());
    assert!(!log.contains(&0x1b), "the log has a terminal's control characters");
}
