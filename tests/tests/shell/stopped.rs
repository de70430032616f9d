//! A VMM that is stopped, a guest that is frozen, and commands at the same time: each command ends in time, and `kill` and `delete`
//! work.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{CommandResult, Container, Runtime, is_vmrt, new_id, wait, wait_within};

/// Time for a command whose VMM does not answer. The longest deadline is that of a request to the guest, 30 seconds.
const MAX_DURATION: Duration = Duration::from_secs(45);

/// Starts a command of the runtime whose output a container does not keep open.
fn start(runtime: &Runtime, arguments: &[&str], log: &tempfile::NamedTempFile) -> Child {
    let file = File::options().append(true).open(log.path()).unwrap();
    let mut command = runtime.command(arguments);
    command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap()
}

/// Runs the commands at the same time. Returns their exit statuses and their output together.
fn at_the_same_time(runtime: &Runtime, commands: &[&[&str]]) -> (Vec<i32>, String) {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut children: Vec<_> = commands.iter().map(|arguments| start(runtime, arguments, &log)).collect();
    let codes = children.iter_mut().map(wait).collect();
    (codes, fs::read_to_string(log.path()).unwrap())
}

fn assert_in_time(what: &str, command: impl FnOnce() -> CommandResult, limit: Duration) -> CommandResult {
    let begun = Instant::now();
    let done = command();
    let taken = begun.elapsed();
    assert!(taken < limit, "{what} took {taken:?}: {done:?}");
    done
}

/// Checks that `state` answers, that the commands `failing`, which need the guest, fail with a message, that `kill` ends the container,
/// and that `delete` removes it.
fn check_commands(runtime: &Runtime, container: &Container<'_>, failing: &[&[&str]]) {
    let short = Duration::from_secs(20);
    let state = assert_in_time("state", || container.call("state", &[]), short).ok();
    assert!(state.text().contains("\"running\""), "{state:?}");
    // A VMM that is stopped holds the streams of an `exec` that has ended, so they are files.
    let run = |words: &&[&str]| {
        let arguments: Vec<_> = words.iter().map(|word| if *word == "ID" { &container.id } else { *word }).collect();
        let log = tempfile::NamedTempFile::new().unwrap();
        (words.join(" "), start(runtime, &arguments, &log), log)
    };
    let running: Vec<_> = failing.iter().map(run).collect();
    for (words, mut command, log) in running {
        let code = wait_within(MAX_DURATION, &mut command);
        let message = fs::read_to_string(log.path()).unwrap();
        assert!(code != 0 && !message.is_empty(), "{words}: {code} {message}");
    }
    assert_in_time("kill", || container.call("kill", &["KILL"]), short).ok();
    container.await_status("stopped");
    container.call("delete", &[]).ok();
}

#[test]
fn a_stopped_vmm_blocks_no_command() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let [killed, deleted] = [(); 2].map(|()| runtime.start_container(&bundle));
    for container in [&killed, &deleted] {
        kill(Pid::from_raw(container.pid()), Signal::SIGSTOP).unwrap();
    }
    let begun = Instant::now();
    deleted.call("delete", &["--force"]).ok();
    assert!(begun.elapsed() < Duration::from_secs(20), "delete --force took {:?}", begun.elapsed());
    let failing: [&[&str]; 5] = [
        &["kill", "ID", "TERM"],
        &["exec", "ID", "true"],
        &["ps", "ID"],
        &["pause", "ID"],
        &["update", "--pids-limit", "9", "ID"],
    ];
    check_commands(&runtime, &killed, &failing);
    runtime.assert_clean();
}

/// Stops the thread that runs a vCPU, so that the guest makes no progress while the VMM works.
fn freeze_vcpu(vmm: i32) -> Pid {
    let threads = fs::read_dir(format!("/proc/{vmm}/task")).unwrap().map(|entry| entry.unwrap().path());
    let is_vcpu = |path: &std::path::PathBuf| fs::read_to_string(path.join("comm")).unwrap().trim() == "vcpu0";
    let path = threads.into_iter().find(is_vcpu).expect("a vCPU");
    let thread = Pid::from_raw(path.file_name().unwrap().to_str().unwrap().parse().unwrap());
    ptrace::seize(thread, ptrace::Options::empty()).unwrap();
    ptrace::interrupt(thread).unwrap();
    waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
    thread
}

#[test]
fn a_frozen_guest_blocks_no_command() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    let vcpu = freeze_vcpu(container.pid());
    // A thread that is traced stays until its tracer has waited for it.
    let reaper = thread::spawn(move || while waitpid(vcpu, Some(WaitPidFlag::__WALL)).is_ok() {});
    check_commands(&runtime, &container, &[&["kill", "ID", "TERM"], &["pause", "ID"]]);
    reaper.join().unwrap();
    runtime.assert_clean();
}

#[test]
fn a_vmm_that_is_killed_during_io_leaves_whole_files() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::script(
        "(while :; do dd if=/dev/zero of=/big bs=1M count=8 conv=fsync 2>/dev/null; sync; done) & \
        i=0; while :; do echo $i >/next && mv /next /number; i=$((i + 1)); done",
    );
    let container = runtime.start_container(&bundle);
    bundle.await_file("number");
    kill(Pid::from_raw(container.pid()), Signal::SIGKILL).unwrap();
    container.await_status("stopped");
    container.call("delete", &[]).ok();
    runtime.assert_clean();
    let number = fs::read_to_string(bundle.file("number")).unwrap();
    assert!(number.trim().parse::<u32>().is_ok(), "a renamed file has {number:?}");
    assert!(fs::read(bundle.file("big")).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn sockets_are_paths_that_only_the_owner_reaches() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let before: HashSet<_> = unix_sockets().into_iter().collect();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    let directory = runtime.root().join(&container.id);
    let added: Vec<_> = unix_sockets().into_iter().filter(|path| !before.contains(path)).collect();
    assert!(added.iter().all(|path| !path.starts_with('@')), "abstract sockets: {added:?}");
    assert!(added.iter().any(|path| path.ends_with("control.sock")), "{added:?}");
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&directory), 0o700);
    assert_eq!(mode(&directory.join("control.sock")) & 0o077, 0);
}

/// The names of the host's Unix sockets that have one.
fn unix_sockets() -> Vec<String> {
    let table = fs::read_to_string("/proc/net/unix").unwrap();
    table.lines().filter_map(|line| line.split_whitespace().nth(7).map(str::to_owned)).collect()
}

#[test]
fn commands_at_the_same_time_are_serialised() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let path = bundle.path().to_str().unwrap();
    let id = new_id();
    let create: &[&str] = &["create", "--bundle", path, &id];
    let (mut codes, output) = at_the_same_time(&runtime, &[create, create]);
    codes.sort_unstable();
    assert!(codes[0] == 0 && codes[1] > 0 && output.contains("exist"), "two creates: {codes:?} {output}");
    let (mut codes, output) = at_the_same_time(&runtime, &[&["start", &id], &["start", &id]]);
    codes.sort_unstable();
    assert!(codes[0] == 0 && codes[1] > 0 && output.contains("already running"), "two starts: {codes:?} {output}");
    runtime.call(&["delete", "--force", &id]).ok();

    at_the_same_time(&runtime, &[create]);
    let (_, output) = at_the_same_time(&runtime, &[&["start", &id], &["kill", &id, "KILL"]]);
    let stopped = || runtime.call(&["state", &id]).text().contains("\"stopped\"").then_some(());
    assert!(vmrt_tests::eventually(Duration::from_secs(20), stopped).is_some(), "a kill during start: {output}");
    runtime.call(&["delete", &id]).ok();
    runtime.assert_clean();

    for milliseconds in [0, 40, 200, 700] {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut creating = start(&runtime, create, &log);
        thread::sleep(Duration::from_millis(milliseconds));
        runtime.call(&["delete", "--force", &id]).ok();
        wait(&mut creating);
        runtime.call(&["delete", "--force", &id]).ok();
        runtime.assert_clean();
    }
}
