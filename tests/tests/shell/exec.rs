//! Further processes in a running container.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{RunningCommand, Runtime, is_vmrt, wait};

#[test]
fn exit_statuses_and_signals_pass_through() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    // The smallest and the largest, those with a meaning for shells and runtimes, and some in between.
    for status in (0..=255).step_by(17).chain([1, 2]).chain(124..=130).chain([137, 254]) {
        assert_eq!(container.script(&format!("exit {status}")).code, status);
    }
    for (signal, status) in [("HUP", 129), ("KILL", 137), ("SEGV", 139), ("TERM", 143)] {
        assert_eq!(container.script(&format!("kill -{signal} $$")).code, status, "{signal}");
    }
}

#[test]
fn an_exec_runs_in_the_containers_namespaces_and_cgroup() {
    let runtime = Runtime::new();
    let bundle = Bundle::script("echo mine >/tmp/file; exec sleep 1000")
        .with("/hostname", json!("box"))
        .with("/process/env/-", json!("FROM=config"))
        .with("/process/cwd", json!("/etc"));
    let container = runtime.start_container(&bundle);
    let script = "until [ $(cat /proc/1/comm) = sleep ]; do sleep 0.1; done; echo file=$(cat /tmp/file); echo host=$(hostname); echo init=$(cat /proc/1/comm); echo env=$FROM; echo cwd=$PWD; \
        for space in pid net ipc uts mnt; do [ $(readlink /proc/1/ns/$space) = $(readlink /proc/self/ns/$space) ] && echo $space=same; done; \
        echo cgroup=$([ \"$(cat /proc/1/cgroup)\" = \"$(cat /proc/self/cgroup)\" ] && echo same)";
    // To read /proc/1, the process needs the same capabilities as the first process.
    let done = container.script(script).ok();
    done.assert_values(&[
        ("file", "mine"),
        ("host", "box"),
        ("init", "sleep"),
        ("env", "config"),
        ("cwd", "/etc"),
        ("pid", "same"),
        ("net", "same"),
        ("ipc", "same"),
        ("uts", "same"),
        ("mnt", "same"),
        ("cgroup", "same"),
    ]);
}

#[test]
fn exec_uses_the_specification_of_create() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]).with("/process/env/-", json!("FROM=creation"));
    let container = runtime.start_container(&bundle);
    let changed = std::fs::read_to_string(bundle.path().join("config.json")).unwrap().replace("creation", "later");
    std::fs::write(bundle.path().join("config.json"), changed).unwrap();
    assert_eq!(container.script("echo $FROM").ok().text(), "creation");
    std::fs::remove_file(bundle.path().join("config.json")).unwrap();
    assert_eq!(container.script("echo $FROM").ok().text(), "creation");
    container.call("update", &["--pids-limit", "50"]).ok();
}

#[test]
fn options_change_the_process() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    let script = "echo uid=$(id -u); echo gid=$(id -g); echo cwd=$PWD; echo a=$A; echo b=$B";
    let arguments = ["--user", "1000:50", "--cwd", "/tmp", "--env", "A=1", "--env", "B=two words"];
    let mut command = runtime.command(&["exec"]);
    command.args(arguments).args([&container.id, "sh", "-c", script]);
    let done = RunningCommand::start(&mut command, None).end().ok();
    done.assert_values(&[("uid", "1000"), ("gid", "50"), ("cwd", "/tmp"), ("a", "1"), ("b", "two words")]);
}

#[test]
fn exec_reads_a_process_from_json() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    let process = json!({"cwd": "/tmp", "args": ["sh", "-c", "pwd; echo $X; id -u"], "env": ["PATH=/bin:/usr/bin", "X=y"],
        "user": {"uid": 7, "gid": 7}});
    let path = bundle.path().join("process.json");
    std::fs::write(&path, process.to_string()).unwrap();
    let mut command = runtime.command(&["exec", "--process", path.to_str().unwrap(), &container.id]);
    assert_eq!(RunningCommand::start(&mut command, None).end().ok().text(), "/tmp\ny\n7");
}

#[test]
fn a_process_without_a_user_runs_as_root() {
    let runtime = Runtime::new();
    let done = runtime.run(&Bundle::script("echo $(id -u) $(id -g)").without("/process/user")).ok();
    assert_eq!(done.text(), "0 0");
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    let path = bundle.path().join("process.json");
    let process = json!({"cwd": "/", "args": ["id", "-u"], "env": ["PATH=/bin:/usr/bin"], "user": null});
    std::fs::write(&path, process.to_string()).unwrap();
    assert_eq!(runtime.call(&["exec", "--process", path.to_str().unwrap(), &container.id]).ok().text(), "0");
}

#[test]
fn options_without_effect_are_accepted() {
    // runc needs AppArmor on the host, even for `unconfined`.
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]).with("/process/apparmorProfile", json!("unconfined"));
    let container = runtime.start_container(&bundle);
    let done = runtime.call(&["exec", "--user", "", "--apparmor", "unconfined", &container.id, "id", "-u"]).ok();
    assert_eq!((done.text(), done.message()), ("0".into(), String::new()));
}

#[test]
fn a_missing_interpreter_is_not_reported_as_a_missing_program() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let script = bundle.file("bin/broken");
    std::fs::write(&script, "#!/no/such/shell\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let container = runtime.start_container(&bundle);
    let done = container.exec(&["broken"]);
    let message = done.message();
    assert!(message.contains("broken") && message.contains("no such file or directory"), "{message}");
    assert!(!message.contains("$PATH"), "it is there: {message}");
    assert_eq!(done.code, 255);
}

#[test]
fn input_and_output_pass_through() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    let input: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[0] ^ number.to_le_bytes()[1]).collect();
    let mut command = runtime.command(&["exec", &container.id, "tee", "/dev/stderr"]);
    let done = RunningCommand::start(&mut command, Some(input.clone())).end().ok();
    assert!(done.stdout == input && done.stderr == input, "{} and {} bytes", done.stdout.len(), done.stderr.len());
}

#[test]
fn a_detached_exec_runs_on_after_its_command() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    let pid_file = bundle.path().join("exec.pid");
    let mut command = runtime.command(&["exec", "--detach", "--pid-file", pid_file.to_str().unwrap(), &container.id]);
    command.args(["sh", "-c", "sleep 1; echo late >/late"]).stdout(std::process::Stdio::null());
    assert_eq!(wait(&mut command.spawn().unwrap()), 0);
    let pid: i32 = std::fs::read_to_string(&pid_file).unwrap().parse().expect("the pid file holds a number");
    assert!(!bundle.file("late").exists() && pid > 0);
    let written = || std::fs::read_to_string(bundle.file("late")).ok().filter(|text| text == "late\n");
    assert!(vmrt_tests::eventually(vmrt_tests::TIMEOUT, written).is_some());
}

#[test]
fn execs_run_concurrently() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    let start = |number: i32| {
        let script = format!("sleep 0.3; echo {number}; exit {number}");
        RunningCommand::start(&mut runtime.command(&["exec", &container.id, "sh", "-c", &script]), None)
    };
    let running: Vec<_> = (0..8).map(start).collect();
    for (number, running) in (0..).zip(running) {
        let done = running.end();
        assert_eq!((done.code, done.text()), (number, number.to_string()));
    }
}

#[test]
fn a_missing_program_is_reported_and_the_container_keeps_running() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    let missing = container.exec(&["no-such-program"]);
    assert_ne!(missing.code, 0);
    assert!(missing.message().contains("no-such-program"), "{}", missing.message());
    let directory = container.exec(&["/etc"]);
    assert_ne!(directory.code, 0);
    // runc 1.1 prints the first message, 1.2 the second.
    let message = directory.message().to_lowercase();
    assert!(message.contains("permission denied") || message.contains("is a directory"), "{message}");
    assert_eq!(container.script("exit 3").code, 3);
}

#[test]
fn execs_end_with_the_container() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    let exec = RunningCommand::start(
        &mut runtime.command(&["exec", &container.id, "sh", "-c", "touch /in; exec sleep 1000"]),
        None,
    );
    bundle.await_file("in");
    container.call("kill", &["KILL"]).ok();
    assert_eq!(exec.end().code, 137);
}
