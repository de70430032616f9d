//! Commands that only print something, and those that are not supported yet.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Stdio;

use serde_json::{Value, json};
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Runtime, is_vmrt, new_id, wait};
use vmrt_tests::terminal::{console_socket, receive_descriptor};

#[test]
fn features_prints_the_specifications_json() {
    let runtime = Runtime::new();
    let features: Value = serde_json::from_slice(&runtime.call(&["features"]).ok().stdout).unwrap();
    assert_eq!(features["ociVersionMin"], "1.0.0");
    for pointer in ["/hooks", "/mountOptions", "/linux/namespaces", "/linux/capabilities"] {
        assert!(features.pointer(pointer).is_some_and(Value::is_array), "no {pointer} in {features}");
    }
    assert_eq!(features.pointer("/linux/cgroup/v2"), Some(&json!(true)));
    assert!(features.pointer("/linux/seccomp/enabled").is_some_and(Value::is_boolean));
}

/// A container with all mount options and namespaces that `features` lists runs.
#[test]
fn a_container_runs_with_every_listed_feature() {
    let runtime = Runtime::new();
    let features: Value = serde_json::from_slice(&runtime.call(&["features"]).ok().stdout).unwrap();
    if !is_vmrt() {
        return;
    }
    let names = |pointer: &str| -> Vec<String> {
        let list = features.pointer(pointer).and_then(Value::as_array).unwrap();
        list.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    // Other tests check binds, and options that contradict the rest.
    let skipped = |name: &str| ["bind", "symfollow", "dev", "remount", "idmap"].iter().any(|part| name.contains(part));
    let options: Vec<_> = names("/mountOptions").into_iter().filter(|name| !skipped(name)).collect();
    let mount = json!({"type": "tmpfs", "source": "tmpfs", "destination": "/with-options", "options": options});
    let namespaces = names("/linux/namespaces").into_iter().filter(|kind| kind != "user" && kind != "time");
    let namespaces: Vec<_> = namespaces.map(|kind| json!({"type": kind})).collect();
    let bundle = Bundle::script("grep /with-options /proc/mounts")
        .with("/mounts/-", mount)
        .with("/linux/namespaces", json!(namespaces));
    assert!(runtime.run(&bundle).ok().text().contains("tmpfs"));
}

#[test]
fn ps_shows_the_processes_of_the_container_and_no_others() {
    let runtime = Runtime::new();
    let bundle = Bundle::script("sleep 1001 & sleep 1002 & wait");
    let container = runtime.start_container(&bundle);
    // Each process is first a copy of the shell, whose command line continues after the number.
    let both_run = || {
        let table = container.call("ps", &[]).ok().text();
        [" sleep 1001", " sleep 1002"].iter().all(|end| table.lines().any(|row| row.ends_with(end))).then_some(table)
    };
    let table = vmrt_tests::eventually(vmrt_tests::TIMEOUT, both_run).expect("both programs run");
    let mut lines = table.lines();
    let words: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(words, ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
    let rows: Vec<Vec<_>> = lines.map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 3, "{table}");
    for program in ["1001", "1002"] {
        let row =
            rows.iter().find(|row| row.last() == Some(&program)).unwrap_or_else(|| panic!("no {program}: {table}"));
        assert_eq!((row[0], row[5]), ("root", "?"), "{table}");
        let parent = rows.iter().find(|other| other[1] == row[2]).unwrap();
        assert!(parent.contains(&"sh"), "{table}");
    }
    if is_vmrt() {
        assert_eq!(rows[0][1..3], ["1", "0"], "pids are the container's: {table}");
    }

    let short = container.call("ps", &["-e", "-x"]).ok().text();
    let words: Vec<_> = short.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(words, ["PID", "TTY", "STAT", "TIME", "COMMAND"]);
    assert_eq!(short.lines().count(), 4);
    let chosen = container.call("ps", &["-eo", "pid,comm"]).ok().text();
    assert!(chosen.lines().skip(1).all(|line| line.ends_with("sh") || line.ends_with("sleep")), "{chosen}");
    assert_ne!(container.call("ps", &["--no-such-option"]).code, 0);
}

#[test]
fn ps_as_json_is_a_list_of_pids_of_this_host() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    let mut command = runtime.command(&["ps", "--format", "json", &container.id]);
    let pids: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    assert_eq!(pids, json!([container.pid()]), "what `docker top` looks up on the host");
    container.call("kill", &["KILL"]).ok();
    container.await_status("stopped");
    let mut command = runtime.command(&["ps", "-f", "json", &container.id]);
    assert_eq!(String::from_utf8(command.output().unwrap().stdout).unwrap().trim(), "null");
}

#[test]
fn checkpoint_and_restore_are_refused_with_the_reason() {
    let runtime = Runtime::new();
    if !is_vmrt() {
        return;
    }
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    for command in ["checkpoint", "restore"] {
        let done = runtime.call(&[command, "--image-path", "/tmp/image", &container.id]);
        assert_eq!(done.code, 1);
        assert!(done.message().contains(&format!("{command} is not supported yet")), "{}", done.message());
    }
    assert_eq!(container.status(), "running");
}

#[test]
fn the_last_value_of_an_option_counts() {
    let runtime = Runtime::new();
    let done =
        runtime.call(&["--log", "/no/such/log", "--log", "", "list", "--format", "table", "--format", "json"]).ok();
    assert_eq!(done.text(), "null");
    if is_vmrt() {
        let done = runtime.call(&["foo"]);
        assert!(done.code == 3 && !done.message().contains("update-interfaces"), "{done:?}");
    }
}

#[test]
fn a_rootless_specification_has_a_user_namespace() {
    let runtime = Runtime::new();
    let folder = tempfile::tempdir().unwrap();
    runtime.call(&["spec", "--rootless", "--bundle", folder.path().to_str().unwrap()]).ok();
    let config: Value = serde_json::from_slice(&fs::read(folder.path().join("config.json")).unwrap()).unwrap();
    let namespaces = config["linux"]["namespaces"].as_array().unwrap();
    assert!(namespaces.iter().any(|namespace| namespace["type"] == "user"));
    assert_eq!(config["linux"]["uidMappings"], json!([{"containerID": 0, "hostID": 0, "size": 1}]));
    assert_eq!(config["linux"]["gidMappings"], config["linux"]["uidMappings"]);
    assert!(config["linux"].get("resources").is_none());
}

#[test]
fn preserved_and_listening_descriptors_are_refused_by_name() {
    let runtime = Runtime::new();
    if !is_vmrt() {
        return;
    }
    let bundle = Bundle::busybox(["true"]);
    let bundle = bundle.path().to_str().unwrap();
    let done = runtime.call(&["run", "--preserve-fds", "1", "--bundle", bundle, "refused"]);
    assert!(done.code == 1 && done.message().contains("--preserve-fds is refused"), "{done:?}");
    // `exec` replaces the shell by the runtime, so LISTEN_PID is the runtime's pid.
    let line =
        format!("LISTEN_FDS=1 LISTEN_PID=$$ exec {} run --bundle {bundle} refused", vmrt_tests::runtime::program());
    let done = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
    let message = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.code() == Some(1) && message.contains("LISTEN_FDS is refused"), "{message}");
}

#[test]
fn pidfd_socket_gets_a_pidfd_of_the_container_process() {
    let runtime = Runtime::new();
    // runc has this option since 1.2.
    if !is_vmrt() {
        return;
    }
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let path = bundle.path().join("pidfd.sock");
    let listener = console_socket(&path);
    let pid = |descriptor: OwnedFd| {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd())).unwrap();
        info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<i32>().ok())
    };
    let id = new_id();
    let options = ["run", "--detach", "--pidfd-socket", path.to_str().unwrap(), "--bundle"];
    let mut command = runtime.command(&options);
    command.arg(bundle.path()).arg(&id).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert_eq!(wait(&mut command.spawn().unwrap()), 0);
    let sent = pid(receive_descriptor(&listener));
    let state: Value = serde_json::from_slice(&runtime.call(&["state", &id]).ok().stdout).unwrap();
    assert_eq!(state["pid"], json!(sent));

    let options = ["exec", "--pidfd-socket", path.to_str().unwrap(), &id, "sleep", "1"];
    let mut exec = runtime.command(&options).stdin(Stdio::null()).spawn().unwrap();
    assert_eq!(pid(receive_descriptor(&listener)), i32::try_from(exec.id()).ok());
    assert_eq!(wait(&mut exec), 0);
    runtime.call(&["delete", "--force", &id]).ok();
}
