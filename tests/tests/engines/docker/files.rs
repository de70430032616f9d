//! Volumes, tmpfs, and `docker cp`.

use std::fs;

use super::Docker;
use crate::Test;

pub const TESTS: &[Test] = &[
    ("volumes_are_shared_with_host_and_containers", volumes_are_shared_with_host_and_containers),
    ("a_tmpfs_is_writable_with_a_read_only_root", a_tmpfs_is_writable_with_a_read_only_root),
    ("files_are_copied_in_and_out", files_are_copied_in_and_out),
];

fn volumes_are_shared_with_host_and_containers() {
    let docker = Docker::new();
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("in"), "from the host\n").expect("a file");
    let bind = format!("{}:/bind", folder.path().display());
    let sealed = format!("{}:/sealed:ro", folder.path().display());
    docker.call(&["volume", "create", "vmrt-test"]).ok();
    let script = "cat /bind/in; echo out >/bind/out; echo kept >/volume/file; ! touch /sealed/new";
    let done = docker.script(&["--volume", &bind, "--volume", &sealed, "--volume", "vmrt-test:/volume"], script).ok();
    assert_eq!(done.text(), "from the host");
    assert!(done.message().contains("Read-only file system"), "{done:?}");
    assert_eq!(fs::read_to_string(folder.path().join("out")).expect("the container's file"), "out\n");
    assert_eq!(docker.script(&["--volume", "vmrt-test:/volume"], "cat /volume/file").ok().text(), "kept");
    docker.call(&["volume", "rm", "vmrt-test"]).ok();
}

fn a_tmpfs_is_writable_with_a_read_only_root() {
    let docker = Docker::new();
    let script = "! echo x >/x && echo y >/scratch/y && cat /scratch/y && df -m /scratch | tail -n 1; hostname";
    let done = docker.script(&["--read-only", "--tmpfs", "/scratch:size=2m", "--hostname", "named"], script).ok();
    assert!(done.message().contains("Read-only file system"), "{done:?}");
    let text = done.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!((lines[0], lines[2]), ("y", "named"));
    let size: Vec<_> = lines[1].split_whitespace().collect();
    assert_eq!((size[0], size[1]), ("tmpfs", "2"), "{text}");
}

fn files_are_copied_in_and_out() {
    let docker = Docker::new();
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a path").to_string();
    fs::write(path("sent"), "there and back\n").expect("a file");
    let container = docker.detached(&[], "exec sleep 1000");
    let inside = |name: &str| format!("{}:{name}", container.name);
    docker.call(&["cp", &path("sent"), &inside("/received")]).ok();
    assert_eq!(container.exec("cat /received && mv /received /moved").ok().text(), "there and back");
    docker.call(&["cp", &inside("/moved"), &path("back")]).ok();
    assert_eq!(fs::read_to_string(path("back")).expect("the copy"), "there and back\n");
}
