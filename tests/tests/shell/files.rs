//! The root file system and the volumes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::json;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::Runtime;

#[test]
fn python_writes_and_reads_a_hundred_megabytes() {
    let runtime = Runtime::new();
    let python = "import hashlib, os, random\nr = random.Random(7)\nblocks = [r.randbytes(1 << 20) for _ in range(4)]\n\
        want = hashlib.sha256()\nwith open('/var/tmp/big', 'wb') as f:\n for i in range(100):\n  f.write(blocks[i % 4]); want.update(blocks[i % 4])\n \
        f.flush(); os.fsync(f.fileno())\nfd = os.open('/var/tmp/big', os.O_RDONLY)\nos.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)\n\
        got = hashlib.sha256()\nwhile chunk := os.read(fd, 1 << 20): got.update(chunk)\nprint(os.fstat(fd).st_size, got.hexdigest() == want.hexdigest())\n\
        os.unlink('/var/tmp/big')";
    let done = runtime.run(&Bundle::debian(["python3", "-c", python])).ok();
    assert_eq!(done.text(), "104857600 True");
}

#[test]
fn container_and_host_see_each_others_files() {
    let runtime = Runtime::new();
    let script = "cat /from-host; mkdir -p /new/dir; echo inside >/new/dir/file; chmod 640 /new/dir/file; ln -s file /new/dir/link; \
        ln /new/dir/file /new/dir/hard; chown 12:34 /new/dir/file; mv /from-host /new/moved; rm /doomed; truncate -s 1M /sparse; mkfifo /pipe";
    let bundle = Bundle::script(script).with_capabilities();
    fs::write(bundle.file("from-host"), "outside\n").unwrap();
    fs::write(bundle.file("doomed"), "").unwrap();
    assert_eq!(runtime.run(&bundle).ok().text(), "outside");
    let file = fs::metadata(bundle.file("new/dir/file")).unwrap();
    assert_eq!(fs::read_to_string(bundle.file("new/dir/file")).unwrap(), "inside\n");
    assert_eq!((file.permissions().mode() & 0o7777, file.uid(), file.gid(), file.nlink()), (0o640, 12, 34, 2));
    assert_eq!(fs::read_link(bundle.file("new/dir/link")).unwrap().to_str(), Some("file"));
    assert_eq!(fs::read_to_string(bundle.file("new/moved")).unwrap(), "outside\n");
    assert!(!bundle.file("from-host").exists() && !bundle.file("doomed").exists());
    let sparse = fs::metadata(bundle.file("sparse")).unwrap();
    assert_eq!((sparse.len(), sparse.blocks()), (1 << 20, 0));
}

#[test]
fn changes_by_the_host_are_visible_in_a_running_container() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    for number in 0..3 {
        fs::write(bundle.file("tmp/news"), format!("{number}\n").repeat(number + 1)).unwrap();
        let shown = || Some(container.script("cat /tmp/news").text()).filter(|text| text.lines().count() == number + 1);
        assert!(vmrt_tests::eventually(std::time::Duration::from_secs(10), shown).is_some(), "change {number}");
    }
}

#[test]
fn a_read_only_root_cannot_be_changed() {
    let runtime = Runtime::new();
    let script = "touch /x 2>/dev/null && echo root=open || echo root=locked; touch /dev/shm/x && echo shm=open; \
        mount -o remount,rw / 2>/dev/null; touch /x 2>/dev/null && echo again=open || echo again=locked";
    let bundle = Bundle::script(script).with("/root/readonly", json!(true));
    let done = runtime.run(&bundle).ok();
    done.assert_values(&[("root", "locked"), ("shm", "open"), ("again", "locked")]);
    assert!(!bundle.file("x").exists());
}

#[test]
fn volumes_are_read_write_or_read_only_as_configured() {
    let runtime = Runtime::new();
    let host = tempfile::tempdir().unwrap();
    fs::create_dir_all(host.path().join("rw")).unwrap();
    fs::create_dir_all(host.path().join("ro/sub")).unwrap();
    fs::write(host.path().join("ro/sub/file"), "content\n").unwrap();
    fs::write(host.path().join("single"), "one\n").unwrap();
    let script = "echo back >/data/rw/file; echo read=$(cat /data/ro/sub/file); echo x 2>/dev/null >/data/ro/sub/file || echo ro=locked; \
        mkdir /data/ro/new 2>/dev/null || echo dir=locked; echo single=$(cat /etc/single); echo two >>/etc/single; \
        echo x 2>/dev/null >/etc/frozen || echo frozen=locked; cp /bin/busybox /data/rw/ls; /data/rw/ls / >/dev/null 2>&1 || echo exec=no; \
        rm -f /data/rw/ls";
    let bundle = Bundle::script(script)
        .bind(&host.path().join("rw"), "/data/rw", &["rw", "noexec", "nosuid"])
        .bind(&host.path().join("ro"), "/data/ro", &["ro"])
        .bind(&host.path().join("single"), "/etc/single", &["rw"])
        .bind(&host.path().join("single"), "/etc/frozen", &["ro"]);
    let done = runtime.run(&bundle).ok();
    done.assert_values(&[
        ("read", "content"),
        ("ro", "locked"),
        ("dir", "locked"),
        ("single", "one"),
        ("frozen", "locked"),
        ("exec", "no"),
    ]);
    assert_eq!(fs::read_to_string(host.path().join("rw/file")).unwrap(), "back\n");
    assert_eq!(fs::read_to_string(host.path().join("single")).unwrap(), "one\ntwo\n");
    assert_eq!(fs::read_to_string(host.path().join("ro/sub/file")).unwrap(), "content\n");
}

#[test]
fn a_tmpfs_has_the_configured_size_and_mode() {
    let runtime = Runtime::new();
    let script = "echo kind=$(stat -f -c %T /scratch); echo mode=$(stat -c %a /scratch); head -c 2000000 /dev/zero >/scratch/x 2>/dev/null; \
        echo size=$(stat -c %s /scratch/x)";
    let mount = json!({"type": "tmpfs", "source": "tmpfs", "destination": "/scratch", "options": ["size=1m", "mode=1750", "nodev"]});
    let done = runtime.run(&Bundle::script(script).with("/mounts/-", mount)).ok();
    done.assert_values(&[("kind", "tmpfs"), ("mode", "1750"), ("size", "1048576")]);
}

#[test]
fn a_symbolic_link_as_mount_point_does_not_lead_out_of_the_root() {
    let runtime = Runtime::new();
    let host = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(host.path().join("file"), "volume\n").unwrap();
    let bundle = Bundle::busybox(["cat", "/trap/file"]).bind(host.path(), "/trap", &["rw"]);
    std::os::unix::fs::symlink(outside.path(), bundle.file("trap")).unwrap();
    let done = runtime.run(&bundle);
    assert!(done.code != 0 || done.text() == "volume", "{done:?}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "nothing was made outside");
}

#[test]
fn access_control_lists_are_inherited_and_enforced() {
    let runtime = Runtime::new();
    let python = "import os, struct\nentries = [(1, 7, -1), (2, 7, 3), (4, 5, -1), (16, 7, -1), (32, 0, -1)]\n\
        acl = struct.pack('<I', 2) + b''.join(struct.pack('<HHi', *entry) for entry in entries)\nos.umask(0o77)\n\
        make = lambda path: os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o666))\nmode = lambda path: oct(os.stat(path).st_mode & 0o777)\n\
        make('/data/plain')\nos.setxattr('/data', 'system.posix_acl_default', acl)\nmake('/data/new')\n\
        print(mode('/data/plain'), mode('/data/new'), len(os.getxattr('/data/new', 'system.posix_acl_access')))\n\
        os.setresuid(3, 3, 3)\nprint(open('/data/new', 'r+').read() == '', os.access('/data/plain', os.R_OK))";
    let host = tempfile::tempdir().unwrap();
    fs::set_permissions(host.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let bundle = Bundle::debian(["python3", "-c", python]).with_capabilities().bind(host.path(), "/data", &[]);
    assert_eq!(runtime.run(&bundle).ok().text(), "0o600 0o660 44\nTrue False");
}
