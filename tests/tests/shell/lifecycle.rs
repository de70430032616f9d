//! A container from `create` to `delete`.

use std::fs;
use std::time::SystemTime;

use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::{Value, json};
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Runtime, is_vmrt, new_id, wait};

#[test]
fn a_container_is_created_started_killed_and_deleted() {
    let runtime = Runtime::new();
    let bundle = Bundle::script("echo started >/proof; exec sleep 1000");
    let container = runtime.create_container(&bundle);
    assert_eq!(container.status(), "created");
    assert!(!bundle.file("proof").exists(), "the program waits for start");
    kill(Pid::from_raw(container.pid()), None).expect("the container's process lives");

    container.call("start", &[]).ok();
    container.await_status("running");
    assert_eq!(container.script("cat /proof").ok().text(), "started");
    assert_eq!(fs::read_to_string(bundle.file("proof")).unwrap(), "started\n");

    container.call("kill", &["KILL"]).ok();
    container.await_status("stopped");
    container.call("delete", &[]).ok();
    assert_ne!(container.call("state", &[]).code, 0);
    runtime.assert_clean();
}

#[test]
fn state_and_list_print_what_runc_prints() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]).with("/annotations/org.example.who", json!("me"));
    let container = runtime.start_container(&bundle);
    let state = container.state();
    assert_eq!(state["id"], json!(container.id));
    assert_eq!(state["bundle"], json!(bundle.path()));
    assert_eq!(state["rootfs"], json!(bundle.path().join("rootfs")));
    assert_eq!(state["annotations"]["org.example.who"], "me");
    for key in ["ociVersion", "pid", "status", "created", "owner"] {
        assert!(state.get(key).is_some(), "no {key} in {state}");
    }

    let table = runtime.call(&["list"]).ok().text();
    let (head, row) = table.split_once('\n').expect("two lines");
    assert_eq!(head.split_whitespace().collect::<Vec<_>>(), ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    let row: Vec<_> = row.split_whitespace().collect();
    let expected = [&container.id, &container.pid().to_string(), "running", bundle.path().to_str().unwrap()];
    assert_eq!(row[..4], expected);
    assert_eq!((row.len(), row[5]), (6, "root"));

    assert_eq!(runtime.call(&["list", "--quiet"]).ok().text(), container.id);
    let list: Value = serde_json::from_slice(&runtime.call(&["list", "--format", "json"]).ok().stdout).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(keys(&list[0]), keys(&state));
    assert_eq!(list[0]["id"], json!(container.id));
}

#[test]
fn the_pid_file_contains_the_pid_of_state() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let pid_file = bundle.path().join("pid");
    let id = new_id();
    let arguments = ["run", "--detach", "--pid-file", pid_file.to_str().unwrap(), "--bundle"];
    let mut command = runtime.command(&arguments);
    command.arg(bundle.path()).arg(&id).stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    assert_eq!(wait(&mut command.spawn().unwrap()), 0);
    let state: Value = serde_json::from_slice(&runtime.call(&["state", &id]).ok().stdout).unwrap();
    assert_eq!(state["status"], "running");
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), state["pid"].to_string());
    runtime.call(&["delete", "--force", &id]).ok();
    assert!(kill(Pid::from_raw(state["pid"].as_i64().unwrap().try_into().unwrap()), None).is_err());
}

#[test]
fn kill_accepts_signal_names_and_numbers() {
    let runtime = Runtime::new();
    let script = "trap 'echo hup >>/got' HUP; trap 'echo usr1 >>/got' USR1; trap 'echo term >>/got; exit 3' TERM; \
                  touch /ready; while :; do sleep 0.05; done";
    let bundle = Bundle::script(script);
    let container = runtime.start_container(&bundle);
    bundle.await_file("ready");
    for (signal, line) in [("HUP", "hup\n"), ("SIGUSR1", "usr1\n"), ("1", "hup\n"), ("term", "term\n")] {
        fs::write(bundle.file("got"), "").unwrap();
        container.call("kill", &[signal]).ok();
        let got = || fs::read_to_string(bundle.file("got")).ok().filter(|text| text == line);
        assert!(vmrt_tests::eventually(vmrt_tests::TIMEOUT, got).is_some(), "no {signal}");
    }
    container.await_status("stopped");
    assert_ne!(container.call("kill", &["KILL"]).code, 0, "a stopped container cannot be killed");
}

#[test]
fn an_unknown_signal_is_refused() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    let done = container.call("kill", &["NOSUCH"]);
    assert_ne!(done.code, 0);
    assert!(done.message().contains("NOSUCH"), "{}", done.message());
    assert_eq!(container.status(), "running");
}

#[test]
fn a_running_container_is_deleted_only_with_force() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    let refused = container.call("delete", &[]);
    assert_ne!(refused.code, 0);
    assert!(refused.message().contains(&container.id), "{}", refused.message());
    assert_eq!(container.status(), "running");
    container.call("delete", &["--force"]).ok();
    container.call("delete", &["--force"]).ok();
}

#[test]
fn a_created_container_can_be_killed_and_deleted() {
    let runtime = Runtime::new();
    let bundle = Bundle::script("touch /proof");
    let container = runtime.create_container(&bundle);
    container.call("kill", &["KILL"]).ok();
    container.await_status("stopped");
    container.call("delete", &[]).ok();
    assert!(!bundle.file("proof").exists());
}

#[test]
fn a_killed_container_has_stopped_when_kill_returns() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    for options in [&["kill"][..], &["kill", "--all"]] {
        let container = runtime.start_container(&bundle);
        runtime.call(&[options, &[&container.id, "KILL"]].concat()).ok();
        let state = container.state();
        assert_eq!(
            (&state["status"], &state["pid"], &state["exitStatus"]),
            (&json!("stopped"), &json!(0), &json!(137))
        );
        assert_ne!(container.call("start", &[]).code, 0);
        assert_eq!(container.exec(&["true"]).code, 255);
        container.call("delete", &[]).ok();
        let left = runtime.call(&["list", "--quiet"]).ok().text();
        assert_eq!(left, "");
    }
    runtime.assert_clean();
}

#[test]
fn a_relative_mount_destination_starts_at_the_root() {
    let runtime = Runtime::new();
    let mount = json!({"type": "tmpfs", "source": "tmpfs", "destination": "data/below"});
    let bundle = Bundle::script("grep -c ' /data/below tmpfs ' /proc/mounts").with("/mounts/-", mount);
    let done = runtime.run(&bundle).ok();
    assert_eq!(done.text(), "1");
    assert!(done.message().contains("mount destination data/below is not absolute"), "{}", done.message());
}

#[test]
fn a_container_can_be_started_only_once() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    assert_ne!(container.call("start", &[]).code, 0);
    assert_eq!(container.status(), "running");
}

#[test]
fn a_detached_container_outlives_its_command_and_keeps_its_exit_status() {
    let runtime = Runtime::new();
    let bundle = Bundle::script("sleep 1; exit 5");
    let container = runtime.start_container(&bundle);
    container.await_status("stopped");
    assert_eq!(container.state()["pid"], 0);
    if is_vmrt() {
        assert_eq!(container.state()["exitStatus"], 5);
    }
    assert_ne!(container.exec(&["true"]).code, 0, "exec in a stopped container fails");
}

#[test]
fn spec_writes_what_runc_writes() {
    let runtime = Runtime::new();
    let folder = tempfile::tempdir().unwrap();
    runtime.call(&["spec", "--bundle", folder.path().to_str().unwrap()]).ok();
    let text = fs::read_to_string(folder.path().join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    let mut keys: Vec<_> = config.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["hostname", "linux", "mounts", "ociVersion", "process", "root"]);
    assert_eq!(config["process"]["args"], json!(["sh"]));
    assert_eq!(config["process"]["terminal"], true);
    assert_eq!(config["root"], json!({"path": "rootfs", "readonly": true}));
    let points: Vec<_> = config["mounts"].as_array().unwrap().iter().map(|mount| &mount["destination"]).collect();
    assert_eq!(points, ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"]);
    let namespaces: Vec<_> = config["linux"]["namespaces"].as_array().unwrap().iter().map(|one| &one["type"]).collect();
    assert_eq!(namespaces[..5], ["pid", "network", "ipc", "uts", "mount"]);

    let again = runtime.call(&["spec", "--bundle", folder.path().to_str().unwrap()]);
    assert_ne!(again.code, 0, "an existing file is not overwritten");
    assert_eq!(fs::read_to_string(folder.path().join("config.json")).unwrap(), text);
}

#[test]
fn a_container_runs_with_the_specification_of_spec() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["true"]);
    fs::remove_file(bundle.path().join("config.json")).unwrap();
    runtime.call(&["spec", "--bundle", bundle.path().to_str().unwrap()]).ok();
    let mut config: Value = serde_json::from_slice(&fs::read(bundle.path().join("config.json")).unwrap()).unwrap();
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["hostname"]);
    fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
    let done = runtime.run(&bundle).ok();
    assert_eq!(json!(done.text()), config["hostname"]);
}

#[test]
fn config_names_another_specification_file() {
    let runtime = Runtime::new();
    if !is_vmrt() {
        return;
    }
    let bundle = Bundle::busybox(["echo", "from another file"]);
    let elsewhere = tempfile::tempdir().unwrap();
    fs::rename(bundle.path().join("config.json"), elsewhere.path().join("other.json")).unwrap();
    let id = new_id();
    let run = ["run", "--config", "other.json", "--bundle", bundle.path().to_str().unwrap(), &id];
    let mut command = runtime.command(&run);
    let done = vmrt_tests::runtime::RunningCommand::start(command.current_dir(elsewhere.path()), None).end().ok();
    assert_eq!(done.text(), "from another file");
}

#[test]
fn the_bundle_is_the_argument_or_the_working_directory() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["echo", "here"]);
    let mut command = runtime.command(&["run", &new_id()]);
    let done = vmrt_tests::runtime::RunningCommand::start(command.current_dir(bundle.path()), None).end().ok();
    assert_eq!(done.text(), "here");
    if is_vmrt() {
        let done = runtime.call(&["run", bundle.path().to_str().unwrap()]).ok();
        assert_eq!(done.text(), "here");
    }
}

#[test]
fn created_in_state_is_the_current_time() {
    let runtime = Runtime::new();
    let before = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    let created = container.state()["created"].as_str().unwrap().to_string();
    let date = std::process::Command::new("date").args(["+%s", "--date", &created]).output().unwrap();
    let created: u64 = String::from_utf8(date.stdout).unwrap().trim().parse().expect("date understands it");
    assert!((before..before + 120).contains(&created), "{created} is not now");
}
