//! `pause` and `resume`.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Container, RunningCommand, Runtime, is_vmrt};

/// A container that continuously appends to a file.
fn counting_bundle() -> Bundle {
    Bundle::script("while :; do echo >>/count; sleep 0.01; done")
}

fn file_size(bundle: &Bundle) -> u64 {
    fs::metadata(bundle.file("count")).map_or(0, |metadata| metadata.len())
}

fn makes_progress(bundle: &Bundle) -> bool {
    let before = file_size(bundle);
    vmrt_tests::eventually(vmrt_tests::TIMEOUT, || (file_size(bundle) > before).then_some(())).is_some()
}

fn paused<'a>(runtime: &'a Runtime, bundle: &'a Bundle) -> Container<'a> {
    let container = runtime.start_container(bundle);
    bundle.await_file("count");
    container.call("pause", &[]).ok();
    container
}

#[test]
fn a_paused_container_makes_no_progress_until_it_is_resumed() {
    let runtime = Runtime::new();
    let bundle = counting_bundle();
    let container = paused(&runtime, &bundle);
    assert_eq!(container.status(), "paused");
    assert!(runtime.call(&["list"]).ok().text().contains("paused"));
    let before = file_size(&bundle);
    sleep(Duration::from_millis(500));
    assert_eq!(file_size(&bundle), before);

    container.call("resume", &[]).ok();
    assert_eq!(container.status(), "running");
    assert!(makes_progress(&bundle));
}

#[test]
fn a_paused_container_cannot_be_paused_started_or_deleted() {
    let runtime = Runtime::new();
    let bundle = counting_bundle();
    let container = paused(&runtime, &bundle);
    assert_ne!(container.call("start", &[]).code, 0);
    let refused = container.call("delete", &[]);
    assert!(refused.code != 0 && refused.message().contains("paused"), "{}", refused.message());
    let again = container.call("pause", &[]);
    assert!(again.code != 0 && again.message().contains("container not running"), "{}", again.message());
    container.call("resume", &[]).ok();
    let again = container.call("resume", &[]);
    assert!(again.code != 0 && again.message().contains("container not paused"), "{}", again.message());
}

#[test]
fn exec_in_a_paused_container_is_refused_or_waits_with_ignore_paused() {
    let runtime = Runtime::new();
    let bundle = counting_bundle();
    let container = paused(&runtime, &bundle);
    let refused = container.exec(&["true"]);
    assert_eq!(refused.code, 255, "{refused:?}");
    let reason = "cannot exec in a paused container (use --ignore-paused to override)";
    assert!(refused.message().contains(reason), "{}", refused.message());

    let mut command = runtime.command(&["exec", "--ignore-paused", &container.id, "sh", "-c", "touch /late; exit 7"]);
    let waiting = RunningCommand::start(&mut command, None);
    sleep(Duration::from_millis(500));
    assert!(!bundle.file("late").exists());
    container.call("resume", &[]).ok();
    assert_eq!(waiting.end().code, 7);
    assert!(bundle.file("late").exists());
}

#[test]
fn a_signal_waits_for_resume_and_sigkill_does_not() {
    let runtime = Runtime::new();
    let bundle = Bundle::script("trap 'echo got >/got' USR1; touch /count; while :; do sleep 0.05; done");
    let container = paused(&runtime, &bundle);
    container.call("kill", &["USR1"]).ok();
    sleep(Duration::from_millis(300));
    assert!(!bundle.file("got").exists());
    container.call("resume", &[]).ok();
    bundle.await_file("got");
    container.call("pause", &[]).ok();
    container.call("kill", &["KILL"]).ok();
    container.await_status("stopped");
    container.call("delete", &[]).ok();
}

#[test]
fn a_created_container_can_be_paused_and_delete_force_removes_a_paused_one() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.create_container(&bundle);
    container.call("pause", &[]).ok();
    assert_eq!(container.status(), "paused");
    container.call("resume", &[]).ok();
    if is_vmrt() {
        assert_eq!(container.status(), "created");
    }
    container.call("start", &[]).ok();
    container.call("pause", &[]).ok();
    container.call("delete", &["--force"]).ok();
}

#[test]
fn a_stopped_container_cannot_be_paused_or_resumed() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["true"]);
    let container = runtime.start_container(&bundle);
    container.await_status("stopped");
    for command in ["pause", "resume"] {
        let done = container.call(command, &[]);
        assert_eq!(done.code, 1, "{done:?}");
    }
}
