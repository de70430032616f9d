//! Processes that are killed at any time leave nothing behind.

use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{RunningCommand, Runtime, is_vmrt, new_id, wait};

/// The VMM processes of this machine.
fn vmms() -> Vec<Pid> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_vmm =
        |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "vmrt-vmm");
    pids.filter(is_vmm).map(Pid::from_raw).collect()
}

#[test]
fn a_killed_vmm_ends_the_container_and_its_execs() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    let exec = RunningCommand::start(
        &mut runtime.command(&["exec", &container.id, "sh", "-c", "touch /in; exec sleep 1000"]),
        None,
    );
    bundle.await_file("in");
    kill(Pid::from_raw(container.pid()), Signal::SIGKILL).unwrap();
    let done = exec.end();
    assert_ne!(done.code, 0);
    assert!(!done.message().is_empty(), "the cause is reported");
    container.await_status("stopped");
    container.call("delete", &[]).ok();
    runtime.assert_clean();
}

#[test]
fn a_killed_vmm_ends_a_run_in_the_foreground() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let id = new_id();
    let run =
        RunningCommand::start(&mut runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), &id]), None);
    let running = || runtime.call(&["state", &id]).text().contains("\"running\"").then_some(());
    assert!(vmrt_tests::eventually(vmrt_tests::TIMEOUT, running).is_some());
    vmms().into_iter().for_each(|pid| kill(pid, Signal::SIGKILL).unwrap());
    let done = run.end();
    assert_eq!(done.code, 137, "{done:?}");
    runtime.call(&["delete", "--force", &id]).ok();
}

#[test]
fn a_guest_panic_is_reported_in_the_error() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    // The guest's kernel has no sysrq. Root can still make it panic this way.
    let bundle =
        Bundle::script("echo 2 >/proc/sys/vm/panic_on_oom && head -c 100000000 /dev/zero | tail").with_capabilities();
    let bundle = bundle.without("/linux/readonlyPaths").without("/linux/maskedPaths");
    let bundle = bundle.with("/linux/resources/memory", json!({"limit": 32 << 20}));
    let done = runtime.run(&bundle);
    assert_ne!(done.code, 0);
    assert!(done.message().to_lowercase().contains("panic"), "{done:?}");
}

/// A number below `bound` from a fixed sequence, so that a failure can be reproduced.
fn random(state: &mut u64, bound: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % bound
}

/// How many cycles of `run`, kill and `delete` there are, unless `VMRT_TEST_CYCLES` says otherwise (`make soak`).
const CYCLES: u32 = 40;

/// Cycles after which the host is taken to have allocated what it keeps.
const WARM_UP: u32 = 20;

/// Cycles between checks of the whole machine.
const CHECK_INTERVAL: u32 = 20;

/// What the host's memory may vary by, in KiB, however many cycles there are.
const MEMORY_VARIATION: i64 = 48 << 10;

/// What all processes of the host use together.
#[derive(Debug)]
struct HostUsage {
    open_files: i64,
    available_kib: i64,
    unreclaimable_slab_kib: i64,
}

impl HostUsage {
    /// Drops the caches first, so that only what is in use counts.
    fn measure() -> Self {
        rustix::fs::sync();
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        let memory = fs::read_to_string("/proc/meminfo").unwrap();
        let number = |text: &str| text.split_whitespace().next().unwrap().parse().unwrap();
        let field = |name: &str| memory.lines().find_map(|line| Some(number(line.strip_prefix(name)?))).unwrap();
        Self {
            open_files: number(&fs::read_to_string("/proc/sys/fs/file-nr").unwrap()),
            available_kib: field("MemAvailable:"),
            unreclaimable_slab_kib: field("SUnreclaim:"),
        }
    }

    /// Checks that there is no growth since `before`. The kernel frees some objects later.
    fn assert_not_grown_since(&self, before: &Self) {
        let grown = self.open_files - before.open_files;
        assert!(grown < 512, "{grown} descriptors are left: {before:?} {self:?}");
        let lost = before.available_kib - self.available_kib;
        assert!(lost < MEMORY_VARIATION, "{lost} KiB of memory are left: {before:?} {self:?}");
        let slab = self.unreclaimable_slab_kib - before.unreclaimable_slab_kib;
        assert!(slab < MEMORY_VARIATION, "{slab} KiB of the kernel are left: {before:?} {self:?}");
    }
}

fn cycles() -> u32 {
    std::env::var("VMRT_TEST_CYCLES").map_or(CYCLES, |number| number.parse().expect("VMRT_TEST_CYCLES is a number"))
}

#[test]
fn runs_killed_at_random_leave_nothing() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut before = None;
    for cycle in 0..cycles() {
        if cycle == WARM_UP {
            before = Some(HostUsage::measure());
        }
        let id = format!("cycle-{cycle}");
        let delay = Duration::from_millis(random(&mut state, 1500));
        let mut command = runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), &id]);
        let mut run = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        kill_vmm_after(delay);
        wait(&mut run);
        runtime.call(&["delete", "--force", &id]).ok();
        assert!(vmms().is_empty(), "cycle {cycle}, killed after {delay:?}: a VMM is left");
        if cycle % CHECK_INTERVAL == CHECK_INTERVAL - 1 {
            runtime.assert_clean();
        }
        if cycle % 500 == 499 {
            println!("{} cycles: {:?}", cycle + 1, HostUsage::measure());
        }
    }
    HostUsage::measure().assert_not_grown_since(&before.expect("more cycles than the warm-up has"));
}

/// Kills the VMM this long after it appeared.
fn kill_vmm_after(delay: Duration) {
    let appeared = vmrt_tests::eventually(vmrt_tests::TIMEOUT, || vmms().first().copied()).expect("a VMM");
    let moment = Instant::now() + delay;
    thread::sleep(moment.saturating_duration_since(Instant::now()));
    // It may have ended by itself.
    let _ = kill(appeared, Signal::SIGKILL);
}

#[test]
fn a_killed_command_leaves_a_container_that_delete_removes() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    for milliseconds in [0, 5, 20, 60, 150, 400, 1000] {
        let id = new_id();
        let mut command = runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), &id]);
        let mut run = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(milliseconds));
        run.kill().unwrap();
        run.wait().unwrap();
        runtime.call(&["delete", "--force", &id]).ok();
        let ended = vmrt_tests::eventually(vmrt_tests::TIMEOUT, || vmms().is_empty().then_some(()));
        assert!(ended.is_some(), "killed after {milliseconds} ms: a VMM is left");
    }
}
