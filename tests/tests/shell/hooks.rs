//! Hooks: when and where they run, and the effect of a failure.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Runtime, is_vmrt, new_id};

/// A hook that runs a shell script on the host. `$D` is a directory for the script's results.
fn hook(results: &Path, script: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": [format!("D={}", results.display()), "PATH=/usr/bin:/bin"]})
}

fn state(file: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

#[test]
fn hooks_run_in_order_and_get_the_state() {
    let runtime = Runtime::new();
    let results = tempfile::tempdir().unwrap();
    let recording_hook = |kind: &str| hook(results.path(), &format!("cat >$D/{kind}; echo {kind} >>$D/order"));
    let guest =
        json!({"path": "/bin/sh", "args": ["sh", "-c", "cat >/told; echo $A >/env"], "env": ["A=in", "PATH=/bin"]});
    let bundle =
        Bundle::script("cat /told >/at-start; sleep 1000").with("/annotations/org.example.who", json!("me")).with(
            "/hooks",
            json!({
                "poststop": [recording_hook("poststop")],
                "poststart": [recording_hook("poststart")],
                "startContainer": [guest],
                "createContainer": [recording_hook("createContainer")],
                "createRuntime": [recording_hook("createRuntime"), recording_hook("createRuntime")],
                "prestart": [recording_hook("prestart")],
            }),
        );
    let order = || fs::read_to_string(results.path().join("order")).unwrap().replace('\n', " ");

    let container = runtime.create_container(&bundle);
    let pid = container.pid();
    if is_vmrt() {
        // runc 1.1 has already run poststart here.
        assert_eq!(order(), "prestart createRuntime createRuntime createContainer ");
    }
    assert!(!bundle.file("told").exists(), "startContainer hooks wait for start");
    container.call("start", &[]).ok();
    bundle.await_file("at-start");
    assert_eq!(order(), "prestart createRuntime createRuntime createContainer poststart ");
    container.call("delete", &["--force"]).ok();
    assert!(order().ends_with(" poststart poststop "), "{}", order());

    for kind in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        let hook_state = state(results.path().join(kind));
        assert_eq!(hook_state["id"], json!(container.id), "{kind}");
        assert_eq!(hook_state["bundle"], json!(bundle.path()), "{kind}");
        assert_eq!(hook_state["annotations"]["org.example.who"], "me", "{kind}");
        let status = match kind {
            "poststart" => "running",
            "poststop" => "stopped",
            _ => "creating",
        };
        if is_vmrt() || kind != "poststart" {
            assert_eq!(hook_state["status"], status, "{kind}");
        }
        if !matches!(kind, "poststop") && (is_vmrt() || kind != "createContainer") {
            assert_eq!(hook_state["pid"], json!(pid), "{kind}");
        }
    }
    let hook_state = state(bundle.file("told"));
    assert_eq!((&hook_state["status"], &hook_state["pid"]), (&json!("created"), &json!(1)));
    assert_eq!((&hook_state["id"], &hook_state["bundle"]), (&json!(container.id), &json!(bundle.path())));
    assert_eq!(fs::read_to_string(bundle.file("env")).unwrap(), "in\n");
}

#[test]
fn hooks_find_the_sandboxs_network_namespace() {
    let runtime = Runtime::new();
    let results = tempfile::tempdir().unwrap();
    let own =
        hook(results.path(), "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/'); readlink /proc/$pid/ns/net >$D/prestart");
    let inside = hook(results.path(), "readlink /proc/self/ns/net >$D/inside; pwd >$D/cwd");
    let bundle =
        Bundle::busybox(["sleep", "1000"]).with("/hooks", json!({"prestart": [own], "createContainer": [inside]}));
    let container = runtime.create_container(&bundle);
    let namespace = fs::read_link(format!("/proc/{}/ns/net", container.pid())).unwrap();
    let result = |name: &str| fs::read_to_string(results.path().join(name)).unwrap().trim().to_owned();
    assert_eq!([result("prestart"), result("inside")], [(); 2].map(|()| namespace.display().to_string()));
    assert!(result("cwd").ends_with("/rootfs"), "{}", result("cwd"));
}

#[test]
fn a_failed_hook_before_the_start_leaves_nothing() {
    let runtime = Runtime::new();
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let results = tempfile::tempdir().unwrap();
        let failing = hook(results.path(), "echo because >&2; exit 3");
        let bundle = Bundle::script("touch /proof").with(
            "/hooks",
            json!({
                kind: [failing, hook(results.path(), "touch $D/later")],
                "poststop": [hook(results.path(), "touch $D/stopped")],
            }),
        );
        let done = runtime.run(&bundle);
        assert_ne!(done.code, 0, "{kind}");
        let message = done.message();
        // runc 1.1 does not print the kind of the hook.
        let name = if is_vmrt() { format!("running {kind} hook #0: ") } else { "hook #0: ".into() };
        assert!(message.contains(&name), "{message}");
        assert!(message.contains("exit status 3") && message.contains("because"), "{message}");
        assert!(!results.path().join("later").exists() && !bundle.file("proof").exists(), "{kind}");
        assert!(results.path().join("stopped").exists(), "poststop hooks run after a failure: {kind}");
        runtime.assert_clean();
    }
}

#[test]
fn a_hook_past_its_timeout_fails_the_run() {
    let runtime = Runtime::new();
    let slow = json!({"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1});
    let done = runtime.run(&Bundle::busybox(["true"]).with("/hooks", json!({"createRuntime": [slow]})));
    assert_ne!(done.code, 0);
    assert!(done.message().contains("hook ran past specified timeout of 1.0s"), "{}", done.message());
}

#[test]
fn a_failed_start_container_hook_ends_the_container() {
    let runtime = Runtime::new();
    let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", "echo because; exit 3"]});
    let bundle = Bundle::script("touch /proof").with("/hooks", json!({"startContainer": [hook]}));
    let done = runtime.run(&bundle);
    assert_ne!(done.code, 0);
    assert!(!bundle.file("proof").exists());
    if is_vmrt() {
        assert!(done.message().contains("error running startContainer hook #0"), "{}", done.message());
        assert!(done.message().contains("because"), "{}", done.message());
    }
}

#[test]
fn a_failed_poststart_hook_ends_the_container() {
    // runc 1.1 runs these at create.
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let results = tempfile::tempdir().unwrap();
    let bundle = Bundle::busybox(["sleep", "1000"]).with(
        "/hooks",
        json!({
            "poststart": [hook(results.path(), "echo because >&2; exit 3"), hook(results.path(), "touch $D/later")],
            "poststop": [hook(results.path(), "touch $D/stopped")],
        }),
    );
    let stopped = results.path().join("stopped");
    let error = "error running poststart hook #0: error running hook: exit status 3";
    let container = runtime.create_container(&bundle);
    let done = container.call("start", &[]);
    assert!(done.code == 1 && done.message().contains(error) && done.message().contains("because"), "{done:?}");
    assert_eq!(container.status(), "stopped");
    assert!(!stopped.exists());
    container.call("delete", &[]).ok();
    fs::remove_file(&stopped).expect("poststop hooks run at delete");

    for options in [&["run"][..], &["run", "--detach"]] {
        let bundle = bundle.path().to_str().unwrap();
        let done = runtime.call(&[options, &["--bundle", bundle, &new_id()]].concat());
        assert!(done.code == 1 && done.message().contains(error), "{done:?}");
        fs::remove_file(&stopped).expect("run deletes the container");
        assert_eq!(runtime.call(&["list", "--quiet"]).ok().text(), "");
    }
    assert!(!results.path().join("later").exists());
    runtime.assert_clean();
}

#[test]
fn a_failed_poststop_hook_is_reported_in_the_log() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let results = tempfile::tempdir().unwrap();
    let failing = json!({"path": "/bin/false"});
    let bundle = Bundle::busybox(["echo", "output"]).with(
        "/hooks",
        json!({
            "poststop": [failing, hook(results.path(), "touch $D/stopped")],
        }),
    );
    let log = results.path().join("log");
    let arguments = ["--log", log.to_str().unwrap(), "run", "--bundle", bundle.path().to_str().unwrap(), &new_id()];
    assert_eq!(runtime.call(&arguments).ok().text(), "output");
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("error running poststop hook #0"), "{log}");
    assert!(results.path().join("stopped").exists());
}
