//! Mounts: options, propagation, and the kinds of sources.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use vmrt_tests::bundle::Bundle;
use vmrt_tests::eventually;
use vmrt_tests::runtime::{Runtime, is_vmrt};
use vmrt_tests::tmpfs_mount::TmpfsMount;

fn tmpfs(destination: &str, options: &[&str]) -> Value {
    json!({"type": "tmpfs", "source": "tmpfs", "destination": destination, "options": options})
}

#[test]
fn a_tmpfs_has_the_mode_of_its_mount_point_and_tmpcopyup_copies_files() {
    let runtime = Runtime::new();
    let script = "echo plain=$(stat -c %a /plain); echo own=$(stat -c %a /own); echo left=$(ls -A /plain | wc -l); \
        echo mode=$(stat -c %a:%u:%g /copied/dir/file); echo text=$(cat /copied/dir/file); echo link=$(readlink /copied/link); \
        echo changed >/copied/dir/file; echo kind=$(stat -f -c %T /copied)";
    let bundle = Bundle::script(script)
        .with("/mounts/-", tmpfs("/plain", &[]))
        .with("/mounts/-", tmpfs("/own", &["mode=1711"]))
        .with("/mounts/-", tmpfs("/copied", &["tmpcopyup", "nosuid"]));
    for directory in ["plain", "own", "copied/dir"] {
        fs::create_dir_all(bundle.file(directory)).unwrap();
    }
    fs::set_permissions(bundle.file("plain"), fs::Permissions::from_mode(0o1770)).unwrap();
    fs::write(bundle.file("plain/covered"), "").unwrap();
    fs::write(bundle.file("copied/dir/file"), "original\n").unwrap();
    fs::set_permissions(bundle.file("copied/dir/file"), fs::Permissions::from_mode(0o640)).unwrap();
    chown(bundle.file("copied/dir/file"), Some(0), Some(7)).unwrap();
    std::os::unix::fs::symlink("/nowhere", bundle.file("copied/link")).unwrap();
    let expected = [
        ("plain", "1770"),
        ("own", "1711"),
        ("left", "0"),
        ("mode", "640:0:7"),
        ("text", "original"),
        ("link", "/nowhere"),
        ("kind", "tmpfs"),
    ];
    runtime.run(&bundle).ok().assert_values(&expected);
    assert_eq!(fs::read_to_string(bundle.file("copied/dir/file")).unwrap(), "original\n");
}

#[test]
fn a_remount_changes_an_existing_mount() {
    let runtime = Runtime::new();
    let script = "touch /frozen/x 2>/dev/null && echo frozen=no || echo frozen=yes; \
        head -c 3000000 /dev/zero >/grown/x 2>/dev/null; echo grown=$(stat -c %s /grown/x)";
    let again =
        json!({"type": "bind", "source": "/tmp", "destination": "/frozen", "options": ["bind", "remount", "ro"]});
    let bundle = Bundle::script(script)
        .with("/mounts/-", tmpfs("/frozen", &[]))
        .with("/mounts/-", again)
        .with("/mounts/-", tmpfs("/grown", &["size=1m"]))
        .with("/mounts/-", tmpfs("/grown", &["remount", "size=2m"]));
    runtime.run(&bundle).ok().assert_values(&[("frozen", "yes"), ("grown", "2097152")]);
}

#[test]
fn a_remount_without_a_mount_is_an_error() {
    let runtime = Runtime::new();
    let again = json!({"type": "bind", "source": "/tmp", "destination": "/etc", "options": ["bind", "remount", "ro"]});
    let done = runtime.run(&Bundle::busybox(["true"]).with("/mounts/-", again));
    assert_ne!(done.code, 0);
    assert!(done.message().contains("/etc"), "{}", done.message());
}

#[test]
fn recursive_attributes_apply_to_mounts_below() {
    let runtime = Runtime::new();
    let host = tempfile::tempdir().unwrap();
    let below = host.path().join("below");
    fs::create_dir(&below).unwrap();
    let _below = TmpfsMount::new(&below);
    fs::copy("/bin/true", below.join("program")).unwrap();
    let script = "for at in /ro /ro/below; do touch $at/x 2>/dev/null && echo $at=open || echo $at=locked; done; \
        for at in /plain /plain/below; do touch $at/x 2>/dev/null && echo $at=open || echo $at=locked; done; \
        /noexec/below/program 2>/dev/null && echo runs=yes || echo runs=no";
    let bundle = Bundle::script(script)
        .bind(host.path(), "/ro", &["rbind", "rro"])
        .bind(host.path(), "/plain", &["rbind"])
        .bind(host.path(), "/noexec", &["rbind", "rnoexec", "rnosuid"]);
    let done = runtime.run(&bundle).ok();
    let expected =
        [("/ro", "locked"), ("/ro/below", "locked"), ("/plain", "open"), ("/plain/below", "open"), ("runs", "no")];
    done.assert_values(&expected);
}

#[test]
fn later_mounts_of_the_host_appear_only_with_slave_propagation() {
    let runtime = Runtime::new();
    let host = tempfile::tempdir().unwrap();
    let _host = TmpfsMount::shared(host.path());
    let place = |name: &str| host.path().join(name);
    for name in ["before", "after"] {
        fs::create_dir(place(name)).unwrap();
    }
    let before = place("before");
    let _before = TmpfsMount::new(&before);
    fs::write(place("before/file"), "").unwrap();
    let bundle = Bundle::busybox(["sleep", "1000"])
        .bind(host.path(), "/follows", &["rbind", "rslave"])
        .bind(host.path(), "/private", &["rbind", "rprivate"])
        .bind(host.path(), "/alone", &["private"]);
    let container = runtime.start_container(&bundle);
    let after = place("after");
    let after_mount = TmpfsMount::new(&after);
    fs::write(place("after/file"), "").unwrap();
    let has = |path: &str| container.exec(&["ls", path]).text().contains("file");
    for (path, expected) in [
        ("/follows/before", true),
        ("/private/before", true),
        ("/alone/before", false),
        ("/private/after", false),
        ("/alone/after", false),
    ] {
        assert_eq!(has(path), expected, "{path}");
    }
    assert!(eventually(Duration::from_secs(10), || has("/follows/after").then_some(())).is_some());
    drop(container);
    drop(after_mount);
}

#[test]
fn shared_propagation_to_the_host_is_refused_by_name() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let done = runtime.run(&Bundle::busybox(["true"]).bind(Path::new("/tmp"), "/data", &["rbind", "rshared"]));
    assert_eq!(done.code, 1);
    assert!(done.message().contains("mount option rshared of /data is refused"), "{}", done.message());
}

#[test]
fn mounts_and_the_root_have_the_configured_propagation() {
    let runtime = Runtime::new();
    let script = "for at in /shared /slave /private /unbindable /; do echo $at=$(awk -v at=$at \
        '$5 == at {for (i = 7; $i != \"-\"; i++) {sub(\":.*\", \"\", $i); printf \"%s\", $i}}' /proc/self/mountinfo); done";
    let with_root = |propagation: &str| {
        let bundle = ["shared", "private", "unbindable"]
            .iter()
            .fold(Bundle::script(script), |bundle, kind| bundle.with("/mounts/-", tmpfs(&format!("/{kind}"), &[kind])));
        runtime.run(&bundle.with("/linux/rootfsPropagation", json!(propagation))).ok()
    };
    let done = with_root("private");
    done.assert_values(&[("/shared", "shared"), ("/private", ""), ("/unbindable", "unbindable"), ("/", "")]);
    if is_vmrt() {
        assert_eq!(with_root("rshared").value("/"), "shared");
        assert_eq!(with_root("unbindable").value("/"), "unbindable");
    }
}

/// Answers every connection with everything that it sent, twice.
fn serve(listener: &UnixListener, connections: usize) {
    for _ in 0..connections {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("text");
        write!(stream, "{text}{text}").expect("an answer");
    }
}

#[test]
fn a_mounted_socket_reaches_the_hosts_server() {
    let runtime = Runtime::new();
    let host = tempfile::tempdir().unwrap();
    let path = host.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
    chown(&path, Some(0), Some(7)).unwrap();
    let server = thread::spawn(move || serve(&listener, 3));
    let python = "import os, socket, stat\nat = '/dev/service.sock'\ns = os.stat(at)\n\
        print(stat.S_ISSOCK(s.st_mode), oct(s.st_mode & 0o777), s.st_gid)\nopen_ = [socket.socket(socket.AF_UNIX) for _ in range(3)]\n\
        for s in open_: s.connect(at)\nfor i, s in enumerate(open_):\n big = b'x' * 300000 if i == 2 else b'%d;' % i\n \
        s.sendall(big); s.shutdown(socket.SHUT_WR); got = b''\n while part := s.recv(65536): got += part\n print(got == big + big)";
    let bundle = Bundle::debian(["python3", "-c", python]).bind(&path, "/dev/service.sock", &[]);
    assert_eq!(runtime.run(&bundle).ok().text(), "True 0o620 7\nTrue\nTrue\nTrue");
    server.join().unwrap();
    // The server has ended.
    let python = "import socket\ns = socket.socket(socket.AF_UNIX)\ntry:\n s.connect('/dev/service.sock')\n s.sendall(b'x')\n \
        print(s.recv(1))\nexcept OSError as error: print('refused')";
    let bundle = Bundle::debian(["python3", "-c", python]).bind(&path, "/dev/service.sock", &[]);
    let answer = runtime.run(&bundle).ok().text();
    assert!(answer == "refused" || is_vmrt() && answer == "b''", "{answer}");
}

#[test]
fn a_mounted_socket_works_again_in_the_next_container() {
    let runtime = Runtime::new();
    let host = tempfile::tempdir().unwrap();
    let path = host.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || serve(&listener, 2));
    let ask = "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('/dev/s')\ns.sendall(b'a'); s.shutdown(socket.SHUT_WR)\n\
        got = b''\nwhile part := s.recv(9): got += part\nprint(got.decode())";
    let bundle = Bundle::debian(["sleep", "1000"]).bind(&path, "/dev/s", &[]);
    for _ in 0..2 {
        let container = runtime.start_container(&bundle);
        assert_eq!(container.exec(&["python3", "-c", ask]).ok().text(), "aa");
    }
    server.join().unwrap();
}

#[test]
fn devices_that_the_guest_has_can_be_mounted() {
    let runtime = Runtime::new();
    let script = "echo null=$(stat -c %t:%T /data/null); echo gone >/data/null; echo fuse=$(stat -c %t:%T /dev/fuse); \
        echo zeros=$(head -c 3 /data/zero | od -An -tx1 | tr -d ' '); echo zero >/data/zero; echo again=$(head -c 1 /data/zero | wc -c)";
    let bundle = Bundle::script(script)
        .bind(Path::new("/dev/null"), "/data/null", &[])
        .bind(Path::new("/dev/zero"), "/data/zero", &[])
        .bind(Path::new("/dev/fuse"), "/dev/fuse", &["ro"]);
    let done = runtime.run(&bundle).ok();
    done.assert_values(&[("null", "1:3"), ("fuse", "a:e5"), ("zeros", "000000"), ("again", "1")]);
    assert!(!is_vmrt() || fs::metadata(bundle.file("data/null")).unwrap().is_file(), "no device was made on the host");
}

#[test]
fn host_devices_pipes_and_datagram_sockets_are_refused_by_name() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let host = tempfile::tempdir().unwrap();
    let path = |name: &str| host.path().join(name);
    for (name, numbers) in [("kvm", &["c", "10", "232"][..]), ("disk", &["b", "8", "0"]), ("pipe", &["p"])] {
        assert!(Command::new("mknod").arg(path(name)).args(numbers).status().unwrap().success());
    }
    let _datagrams = UnixDatagram::bind(path("log")).unwrap();
    for (name, reason) in [
        ("kvm", "a device of the host"),
        ("disk", "a block device of the host"),
        ("pipe", "a named pipe"),
        ("log", "a datagram socket"),
    ] {
        let done = runtime.run(&Bundle::busybox(["true"]).bind(&path(name), "/data", &[]));
        assert_eq!(done.code, 1);
        let message = done.message();
        assert!(message.contains(reason) && message.contains(path(name).to_str().unwrap()), "{message}");
    }
}

#[test]
fn a_mounted_file_keeps_its_inode_when_the_host_replaces_it() {
    let runtime = Runtime::new();
    let host = tempfile::tempdir().unwrap();
    let path = |name: &str| host.path().join(name);
    fs::write(path("file"), "old\n").unwrap();
    let bundle =
        Bundle::busybox(["sleep", "1000"]).bind(&path("file"), "/etc/file", &[]).bind(host.path(), "/etc/all", &[]);
    let container = runtime.start_container(&bundle);
    let read = |path: &str| container.exec(&["cat", path]).ok().text();
    assert_eq!((read("/etc/file"), read("/etc/all/file")), ("old".into(), "old".into()));
    fs::write(path("new"), "new\n").unwrap();
    fs::rename(path("new"), path("file")).unwrap();
    let changed = || (read("/etc/all/file") == "new").then_some(());
    assert!(eventually(Duration::from_secs(10), changed).is_some());
    assert_eq!(read("/etc/file"), "old", "a mount is of an inode, not of a name");
}

#[test]
fn mounts_are_listed_in_the_order_of_the_configuration() {
    let runtime = Runtime::new();
    let source = tempfile::tempdir().unwrap();
    let file_system = |kind: &str, destination: &str| json!({"type": kind, "source": kind, "destination": destination});
    let bind = |destination: &str| json!({"type": "bind", "source": source.path(), "destination": destination, "options": ["bind"]});
    let mounts = [
        file_system("proc", "/proc"),
        file_system("tmpfs", "/dev"),
        file_system("tmpfs", "/n"),
        bind("/n/a"),
        file_system("tmpfs", "/n/b"),
        file_system("sysfs", "/sys"),
        bind("/n/b/c"),
    ];
    let places: Vec<_> = mounts.iter().map(|mount| mount["destination"].as_str().unwrap().to_owned()).collect();
    let bundle = Bundle::busybox(["cat", "/proc/self/mountinfo"])
        .with("/mounts", json!(mounts))
        .with("/linux/maskedPaths", json!([]))
        .with("/linux/readonlyPaths", json!([]));
    let text = runtime.run(&bundle).ok().text();
    let listed: Vec<_> = text.lines().filter_map(|line| line.split(' ').nth(4)).filter(|place| *place != "/").collect();
    assert_eq!(listed, places, "{text}");
}

#[test]
fn read_only_mounts_get_their_content_first() {
    let runtime = Runtime::new();
    let script = "for place in /dev /n; do touch $place/x 2>/dev/null && echo $place is open; done; \
        touch /n/in/x && echo x >/dev/null && ls /dev/pts >/dev/null && echo all";
    let bundle = Bundle::script(script)
        .with("/mounts/1/options", json!(["nosuid", "strictatime", "mode=755", "size=65536k", "ro"]))
        .with("/mounts/-", json!({"type": "tmpfs", "source": "tmpfs", "destination": "/n", "options": ["ro"]}))
        .with("/mounts/-", json!({"type": "tmpfs", "source": "tmpfs", "destination": "/n/in"}));
    assert_eq!(runtime.run(&bundle).ok().text(), "all");
}

#[test]
fn a_mount_point_behind_a_dangling_link_is_made_in_the_root() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["cat", "/run-of-old/socket/file"]);
    std::os::unix::fs::symlink("../../../run-of-now", bundle.file("run-of-old")).unwrap();
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("file"), "found").unwrap();
    let bundle = bundle.bind(source.path(), "/run-of-old/socket", &[]);
    assert_eq!(runtime.run(&bundle).ok().text(), "found");
    assert!(bundle.file("run-of-now/socket").is_dir());
    let linked = Bundle::busybox(["true"]);
    std::fs::remove_dir(linked.file("proc")).unwrap();
    std::os::unix::fs::symlink("tmp", linked.file("proc")).unwrap();
    let done = runtime.run(&linked);
    assert!(done.code == 1 && done.message().contains("must be mounted on ordinary directory"), "{done:?}");
}

#[test]
fn every_mount_has_a_descriptive_source() {
    let runtime = Runtime::new();
    let volume = tempfile::tempdir().unwrap();
    let nested = volume.path().join("nested");
    fs::create_dir(&nested).unwrap();
    let _nested = TmpfsMount::new(&nested);
    let script = "ls /data/nested; awk '{for (i = 7; $i != \"-\"; i++); print $5 \"=\" $(i + 2)}' /proc/self/mountinfo; \
        echo df=$(df -P / /data | awk 'NR > 1 {print $1, $6}'); echo findmnt=$(findmnt -n -o SOURCE / | sed 's/\\[.*//'); \
        mount | grep -q ' on / type ' && echo mount=shown; echo statfs=$(stat -f -c %T /dev/shm)";
    let without_source = json!({"type": "tmpfs", "destination": "/anonymous"});
    let bundle =
        Bundle::debian(["sh", "-c", script]).bind(volume.path(), "/data", &["rbind"]).with("/mounts/-", without_source);
    let done = runtime.run(&bundle).ok();
    assert!(!done.text().lines().any(|line| line.ends_with("=none")), "{}", done.text());
    let expected = [("/proc", "proc"), ("/dev", "tmpfs"), ("/dev/pts", "devpts"), ("/dev/shm", "shm")];
    done.assert_values(&expected);
    done.assert_values(&[("/sys/fs/cgroup", "cgroup"), ("mount", "shown"), ("statfs", "tmpfs")]);
    let root = done.value("/");
    assert_eq!(
        (done.value("findmnt"), done.value("df")),
        (root.clone(), format!("{root} / {} /data", done.value("/data")))
    );
    if is_vmrt() {
        done.assert_values(&[("/", "vmrt/rootfs"), ("/data", "vmrt/volume-0"), ("/anonymous", "tmpfs")]);
        done.assert_values(&[("/data/nested", "vmrt/volume-0/nested")]);
    }
}
