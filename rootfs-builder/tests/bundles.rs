//! The `bundle` commands by their command lines.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use oci_spec::runtime::Spec;

fn rootfs_builder(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rootfs-builder")).args(arguments).current_dir(folder).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_busybox_bundle_has_the_applets_and_the_requested_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["bundle", "busybox", "--output", "box", "--memory", "64M", "--hostname", "tiny", "--vcpus", "2"];
    let more = ["--vm-memory", "128M", "--env", "A=1", "--user", "1000:50", "--cwd", "/tmp", "--", "echo", "hello"];
    let output = rootfs_builder(&[&arguments[..], &more[..]].concat(), folder.path());
    assert!(output.status.success(), "{}", stderr(&output));
    let bundle = folder.path().join("box");
    assert_eq!(fs::read_link(bundle.join("rootfs/bin/sh")).unwrap(), Path::new("/bin/busybox"));
    assert_eq!(fs::metadata(bundle.join("rootfs/tmp")).unwrap().permissions().mode() & 0o7777, 0o1777);
    let spec = Spec::load(bundle.join("config.json")).unwrap();
    assert_eq!(spec.hostname().as_deref(), Some("tiny"));
    let annotations = spec.annotations().as_ref().unwrap();
    assert_eq!((annotations["dev.vmrt.memory"].as_str(), annotations["dev.vmrt.vcpus"].as_str()), ("128M", "2"));
    let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
    assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(64 << 20));
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.args().as_ref().unwrap(), &["echo", "hello"]);
    assert!(process.env().as_ref().unwrap().contains(&"A=1".to_string()));
    assert_eq!((process.user().uid(), process.user().gid()), (1000, 50));
    assert_eq!(process.cwd(), Path::new("/tmp"));
    assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(false));
}

#[test]
fn a_directory_and_its_archives_give_the_same_root_file_system() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    fs::create_dir_all(source.join("bin")).unwrap();
    fs::write(source.join("bin/tool"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(source.join("bin/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    std::os::unix::fs::symlink("tool", source.join("bin/link")).unwrap();
    fs::hard_link(source.join("bin/tool"), source.join("bin/hard")).unwrap();
    for (archive, option) in [("a.tar", "-cf"), ("a.tar.gz", "-czf"), ("a.tar.xz", "-cJf")] {
        let made = Command::new("tar").args([option, archive, "-C", "source", "."]).current_dir(folder.path()).status();
        assert!(made.unwrap().success());
    }
    for from in ["source", "a.tar", "a.tar.gz", "a.tar.xz"] {
        let output = rootfs_builder(&["bundle", "rootfs", "--from", from, "--output", "bundle"], folder.path());
        assert!(output.status.success(), "{}", stderr(&output));
        let bin = folder.path().join("bundle/rootfs/bin");
        assert_eq!(names(&bin), ["hard", "link", "tool"]);
        let metadata = fs::metadata(bin.join("tool")).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o4755);
        assert_eq!(std::os::unix::fs::MetadataExt::nlink(&metadata), 2);
        assert_eq!(fs::read_link(bin.join("link")).unwrap(), Path::new("tool"));
        fs::remove_dir_all(folder.path().join("bundle")).unwrap();
    }
}

#[test]
fn a_failure_is_reported_once_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("broken.tar"), "this is no archive, however long one looks at it").unwrap();
    let output = rootfs_builder(&["bundle", "rootfs", "--from", "broken.tar", "--output", "bundle"], folder.path());
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).ends_with("rootfs-builder: tar failed: exit status: 2\n"), "{}", stderr(&output));
    let output = rootfs_builder(&["bundle", "rootfs", "--from", "nowhere", "--output", "bundle"], folder.path());
    assert_eq!(stderr(&output), "rootfs-builder: read nowhere: No such file or directory (os error 2)\n");
    assert_eq!(names(folder.path()), ["broken.tar"]);
}

#[test]
fn a_bundle_is_not_made_over_another_or_inside_its_source() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("full")).unwrap();
    fs::write(folder.path().join("full/file"), "").unwrap();
    let output = rootfs_builder(&["bundle", "busybox", "--output", "full"], folder.path());
    assert!(stderr(&output).contains("full exists and is not an empty directory"), "{}", stderr(&output));
    let output = rootfs_builder(&["bundle", "rootfs", "--from", "full", "--output", "full/inner"], folder.path());
    assert!(stderr(&output).contains("inside the directory it copies"), "{}", stderr(&output));
    assert_eq!(names(&folder.path().join("full")), ["file"]);
}
