//! Mounts that the host adds below a volume with slave propagation, and removes again.

use std::fs;
use std::time::Duration;

use vmrt_tests::bundle::Bundle;
use vmrt_tests::eventually;
use vmrt_tests::runtime::{Container, Runtime, is_vmrt};
use vmrt_tests::tmpfs_mount::TmpfsMount;

const VISIBLE_WITHIN: Duration = Duration::from_secs(10);

/// Waits until a path exists in the container, or until it does not.
fn await_file(container: &Container<'_>, path: &str, there: bool) {
    let found = || (container.exec(&["test", "-e", path]).code == 0) == there;
    assert!(eventually(VISIBLE_WITHIN, || found().then_some(())).is_some(), "{path} there: {there}");
}

#[test]
fn the_host_can_unmount_a_mount_that_the_container_does_not_use() {
    let runtime = Runtime::new();
    let host = tempfile::tempdir().unwrap();
    let _host = TmpfsMount::shared(host.path());
    let place = host.path().join("sub");
    fs::create_dir(&place).unwrap();
    let bundle = Bundle::busybox(["sleep", "1000"]).bind(host.path(), "/follows", &["rbind", "rslave"]);
    let container = runtime.start_container(&bundle);
    for round in 0..2 {
        let sub = TmpfsMount::new(&place);
        fs::create_dir_all(place.join("a/b")).unwrap();
        fs::write(place.join("a/b/file"), "text").unwrap();
        await_file(&container, "/follows/sub/a/b/file", true);
        // Reads and changes the files in many ways, and closes all of them.
        let script = "cd /follows/sub && find . >/dev/null && cat a/b/file && echo more >>a/b/file && mv a c && \
            ln c/b/file d && rm c/b/file && cat d && mkdir e && mv c/b e && rmdir e/b && ls -lR >/dev/null";
        assert_eq!(container.script(script).ok().text(), "texttextmore");
        assert!(sub.unmount(), "round {round}: it is not in use");
        await_file(&container, "/follows/sub/d", false);
    }
}

#[test]
fn the_host_cannot_unmount_a_mount_with_an_open_file_of_the_container() {
    let runtime = Runtime::new();
    let host = tempfile::tempdir().unwrap();
    let _host = TmpfsMount::shared(host.path());
    let place = host.path().join("sub");
    fs::create_dir(&place).unwrap();
    // The file is removed while it is open, so no path leads to it.
    let script = "while ! test -e /follows/sub/file; do sleep 0.1; done; exec 3<>/follows/sub/file; rm /follows/sub/file; \
        echo >/opened; while ! test -e /close; do sleep 0.1; done; echo written >&3; stat -L -c %h:%s /proc/self/fd/3 >/told; \
        exec 3>&-; echo >/closed; sleep 1000";
    let bundle = Bundle::script(script).bind(host.path(), "/follows", &["rbind", "rslave"]);
    let container = runtime.start_container(&bundle);
    let sub = TmpfsMount::new(&place);
    fs::write(place.join("file"), "").unwrap();
    bundle.await_file("opened");
    assert!(!sub.unmount(), "a file on it is open");
    fs::write(bundle.file("close"), "").unwrap();
    bundle.await_file("closed");
    assert_eq!(fs::read_to_string(bundle.file("told")).unwrap().trim(), "0:8");
    assert!(eventually(VISIBLE_WITHIN, || sub.unmount().then_some(())).is_some(), "nothing is open any more");
    drop(container);
}

#[test]
fn a_later_mount_of_the_host_where_devices_can_be_opened_gets_no_device_nodes() {
    let runtime = Runtime::new();
    let host = tempfile::tempdir().unwrap();
    let _host = TmpfsMount::shared(host.path());
    let place = host.path().join("sub");
    fs::create_dir(&place).unwrap();
    let bundle = Bundle::busybox(["sleep", "1000"]).with_capabilities();
    let bundle = bundle.bind(host.path(), "/follows", &["rbind", "rslave"]);
    let container = runtime.start_container(&bundle);
    let _sub = TmpfsMount::new(&place);
    fs::write(place.join("file"), "").unwrap();
    await_file(&container, "/follows/sub/file", true);
    let script = "mknod /follows/null c 1 3 && echo above=made; mknod /follows/sub/null c 1 3 && echo below=made; mkfifo /follows/sub/pipe";
    let done = container.script(script).ok();
    assert_eq!(done.value("above"), "made");
    if is_vmrt() {
        assert!(!done.text().contains("below"), "{done:?}");
        assert!(!place.join("null").exists() && place.join("pipe").exists());
    }
}
