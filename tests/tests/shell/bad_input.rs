//! Invalid input: each command prints a clear message, fails, and leaves nothing behind.

use std::fs;
use std::process::Command;

use serde_json::json;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{CommandResult, RunningCommand, Runtime, is_vmrt, new_id, program};

/// Asserts that the command failed, and that its message is short and contains each of these words.
#[track_caller]
fn assert_refused(done: &CommandResult, words: &[&str]) {
    let message = done.message();
    assert_ne!(done.code, 0, "{message}");
    for word in words {
        assert!(message.to_lowercase().contains(&word.to_lowercase()), "no {word:?} in {message:?}");
    }
    if is_vmrt() {
        assert!(message.lines().count() <= 2, "the message is too long: {message}");
        assert!(!message.contains("panicked at"), "{message}");
    }
}

fn run_directory(runtime: &Runtime, directory: &str) -> CommandResult {
    runtime.call(&["run", "--bundle", directory, &new_id()])
}

#[test]
fn a_directory_without_a_bundle_is_refused() {
    let runtime = Runtime::new();
    assert_refused(&run_directory(&runtime, "/no/such/bundle"), &["/no/such/bundle", "no such file"]);
    let empty = tempfile::tempdir().unwrap();
    assert_refused(&run_directory(&runtime, empty.path().to_str().unwrap()), &["config.json"]);
}

#[test]
fn a_malformed_config_is_refused() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["true"]);
    for text in ["", "{", "[]", "{\"process\": 7}", "\u{0}\u{0}"] {
        fs::write(bundle.path().join("config.json"), text).unwrap();
        let done = runtime.run(&bundle);
        assert_refused(&done, &[]);
        assert!(!is_vmrt() || done.message().contains("config.json"), "{}", done.message());
    }
}

#[test]
fn a_config_without_a_required_member_is_refused() {
    let runtime = Runtime::new();
    for part in ["/process", "/root", "/process/args", "/process/cwd"] {
        let name = part.rsplit('/').next().unwrap();
        let done = runtime.run(&Bundle::busybox(["true"]).without(part));
        assert_refused(&done, &[name][usize::from(!is_vmrt())..]);
    }
    assert_refused(&runtime.run(&Bundle::busybox([])), &["args"]);
}

#[test]
fn an_unsupported_version_is_refused() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    for version in ["2.0.0", "nonsense", ""] {
        let done = runtime.run(&Bundle::busybox(["true"]).with("/ociVersion", json!(version)));
        assert_refused(&done, &["ociVersion", version]);
    }
}

#[test]
fn a_missing_root_is_refused() {
    let runtime = Runtime::new();
    let done = runtime.run(&Bundle::busybox(["true"]).with("/root/path", json!("nowhere")));
    assert_refused(&done, &["nowhere"]);
}

#[test]
fn a_missing_program_exits_with_127_and_a_non_executable_one_with_126() {
    let runtime = Runtime::new();
    let missing = runtime.run(&Bundle::busybox(["no-such-program"]));
    assert_refused(&missing, &["no-such-program"]);
    let missing_path = runtime.run(&Bundle::busybox(["/no/such/program"]));
    assert_refused(&missing_path, &["/no/such/program", "no such file"]);
    let forbidden = runtime.run(&Bundle::busybox(["/etc/passwd"]));
    assert_refused(&forbidden, &["/etc/passwd", "permission denied"]);
    if is_vmrt() {
        assert_eq!((missing.code, missing_path.code, forbidden.code), (127, 127, 126));
    }
}

#[test]
fn a_relative_working_directory_is_refused() {
    let runtime = Runtime::new();
    assert_refused(&runtime.run(&Bundle::busybox(["true"]).with("/process/cwd", json!("tmp"))), &["cwd", "absolute"]);
}

#[test]
fn an_invalid_environment_variable_is_refused() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    for entry in ["", "FOO", "=x"] {
        let done = runtime.run(&Bundle::busybox(["true"]).with("/process/env/-", json!(entry)));
        assert_refused(&done, &["invalid environment variable", entry]);
    }
}

#[test]
fn an_exec_as_an_unknown_user_is_refused() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    let done = runtime.call(&["exec", "--user", "nosuchuser", &container.id, "true"]);
    assert_refused(&done, &["nosuchuser"]);
}

#[test]
fn an_id_in_use_is_refused() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    let done = runtime.call(&["run", "--bundle", bundle.path().to_str().unwrap(), &container.id]);
    assert_refused(&done, &["exist"]);
    assert_eq!(container.status(), "running");
}

#[test]
fn an_invalid_id_is_refused() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["true"]);
    for id in ["a/b", "../up", ".", "..", "", "a b", "/etc"] {
        let done = runtime.call(&["run", "--bundle", bundle.path().to_str().unwrap(), id]);
        assert_refused(&done, if id.is_empty() { &[] } else { &["id"] });
    }
}

#[test]
fn a_missing_container_is_an_error_except_for_delete_force() {
    let runtime = Runtime::new();
    for arguments in [&["state"][..], &["start"], &["delete"]] {
        assert_refused(&runtime.call(&[arguments, &["nobody"]].concat()), &["does not exist"]);
    }
    assert_refused(&runtime.call(&["kill", "nobody", "KILL"]), &["does not exist"]);
    assert_refused(&runtime.call(&["exec", "nobody", "true"]), &["does not exist"]);
    runtime.call(&["delete", "--force", "nobody"]).ok();
}

#[test]
fn a_mount_with_a_missing_source_is_refused() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["true"]).bind(std::path::Path::new("/no/such/source"), "/data", &["rw"]);
    assert_refused(&runtime.run(&bundle), &["/no/such/source", "no such file"]);
}

#[test]
fn a_missing_or_truncated_kernel_or_initramfs_is_refused() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["true"]);
    let folder = tempfile::tempdir().unwrap();
    let library = vmrt_library();
    for (variable, name) in [("VMRT_KERNEL", "vmlinux"), ("VMRT_INITRAMFS", "initramfs.cpio")] {
        let file = folder.path().join(name);
        let run = || {
            let mut command = runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), &new_id()]);
            RunningCommand::start(command.env(variable, &file), None).end()
        };
        assert_refused(&run(), &[name, "no such file"]);
        let whole = fs::read(library.join(name)).unwrap();
        fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        assert_refused(&run(), &[]);
        fs::write(&file, "this is neither").unwrap();
        assert_refused(&run(), &[]);
    }
}

/// The directory with the kernel and the initramfs of the tested vmrt.
fn vmrt_library() -> std::path::PathBuf {
    let which = Command::new("which").arg(program()).output().unwrap();
    let program = fs::canonicalize(String::from_utf8(which.stdout).unwrap().trim()).unwrap();
    program.parent().unwrap().join("../lib/vmrt")
}

#[test]
fn invalid_memory_and_vcpu_annotations_are_refused() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    for (annotation, value) in [
        ("memory", "16M"),
        ("memory", "much"),
        ("memory", "999999G"),
        ("vcpus", "0"),
        ("vcpus", "65"),
        ("vcpus", "two"),
    ] {
        let bundle = Bundle::busybox(["true"]).with(&format!("/annotations/dev.vmrt.{annotation}"), json!(value));
        assert_refused(&runtime.run(&bundle), &[if annotation == "memory" { "memory" } else { "vcpu" }]);
    }
}

#[test]
fn a_host_without_kvm_is_an_error() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["true"]);
    let command = runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), &new_id()]);
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let words: Vec<_> = words.into_iter().map(|word| word.to_str().unwrap()).collect();
    let hide_device =
        "mv /dev/kvm /dev/kvm.hidden || exit 99; \"$@\"; status=$?; mv /dev/kvm.hidden /dev/kvm; exit $status";
    let replace_device = "mount --bind /dev/null /dev/kvm || exit 99; exec \"$@\"";
    let mut without_device = Command::new("sh");
    assert_refused(
        &RunningCommand::start(without_device.args(["-c", hide_device, "sh"]).args(&words), None).end(),
        &["/dev/kvm", "does not exist"],
    );
    let mut with_null_device = Command::new("unshare");
    let done =
        RunningCommand::start(with_null_device.args(["--mount", "sh", "-c", replace_device, "sh"]).args(&words), None)
            .end();
    assert_refused(&done, &["kvm"]);
}

#[test]
fn a_guest_without_an_agent_fails_the_run() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["true"]);
    let folder = tempfile::tempdir().unwrap();
    let silent = folder.path().join("mute.cpio");
    let builder = std::env::var("VMRT_ROOTFS_BUILDER").expect("tests/e2e names rootfs-builder");
    // As /init, busybox waits for a key and never answers.
    let init = vmrt_tests::bundle::templates().join("busybox/rootfs/bin/busybox");
    let built = Command::new(builder).args(["initramfs", "--output"]).arg(&silent).arg("--agent").arg(init).status();
    assert!(built.unwrap().success());
    let mut command = runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), &new_id()]);
    let done = RunningCommand::start(command.env("VMRT_INITRAMFS", &silent), None).end();
    assert_refused(&done, &["agent"]);
}

#[test]
fn a_full_state_directory_fails_the_run_and_leaves_nothing() {
    let _clean = Runtime::new();
    let bundle = Bundle::busybox(["true"]);
    let folder = tempfile::tempdir().unwrap();
    let mount = |arguments: &[&str]| {
        assert!(Command::new(arguments[0]).args(&arguments[1..]).arg(folder.path()).status().unwrap().success());
    };
    mount(&["mount", "-t", "tmpfs", "-o", "size=16k,nr_inodes=40", "full"]);
    let mut number = 0;
    while fs::write(folder.path().join(format!("filler{number}")), [0; 4096]).is_ok() {
        number += 1;
    }
    let mut command = Command::new(program());
    command.arg("--root").arg(folder.path()).args(["run", "--bundle", bundle.path().to_str().unwrap(), "full"]);
    let done = RunningCommand::start(&mut command, None).end();
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    mount(&["umount"]);
    assert_refused(&done, if is_vmrt() { &["no space left"] } else { &[] });
    assert!(left.iter().all(|name| name.to_str().unwrap().starts_with("filler")), "{left:?}");
}

#[test]
fn unknown_commands_and_options_are_refused() {
    let runtime = Runtime::new();
    assert_ne!(runtime.call(&["frobnicate"]).code, 0);
    assert_ne!(runtime.call(&["run", "--frobnicate", "x"]).code, 0);
    assert_ne!(runtime.call(&["state"]).code, 0);
    assert_ne!(runtime.call(&["exec", "x"]).code, 0);
}
