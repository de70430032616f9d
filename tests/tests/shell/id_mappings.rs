//! Id-mapped mounts: files have other owners in the container than on the host.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Runtime, is_vmrt};

/// Unmapped owners, as `stat -c %u:%g` prints them.
const NOBODY: &str = "65534:65534";

fn map(container: u32, host: u32, size: u32) -> Value {
    json!([{"containerID": container, "hostID": host, "size": size}])
}

/// Bind-mounts a directory and maps user 1000 and group 2000 to `owner`.
fn mapped(bundle: Bundle, source: &Path, destination: &str, options: &[&str], owner: u32) -> Bundle {
    let mount = json!({"type": "bind", "source": source, "destination": destination, "options": options,
        "uidMappings": map(1000, owner, 10), "gidMappings": map(2000, owner, 10)});
    bundle.with("/mounts/-", mount)
}

fn make(path: &Path, uid: u32, gid: u32) {
    fs::write(path, "content\n").unwrap();
    chown(path, Some(uid), Some(gid)).unwrap();
}

/// A directory of user 1000 and group 2000, with their file `own`, and the file `foreign` of another user.
fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    chown(directory.path(), Some(1000), Some(2000)).unwrap();
    make(&directory.path().join("own"), 1000, 2000);
    make(&directory.path().join("foreign"), 7, 7);
    directory
}

fn owner(path: &Path) -> (u32, u32) {
    let stat = fs::symlink_metadata(path).unwrap();
    (stat.uid(), stat.gid())
}

/// Debian's runc does not support id-mapped mounts.
fn is_unsupported() -> bool {
    !is_vmrt()
}

#[test]
fn owners_are_mapped_both_ways_without_a_user_namespace() {
    if is_unsupported() {
        return;
    }
    let runtime = Runtime::new();
    let host = directory();
    let script = "cd /data; for f in . own foreign; do echo $f=$(stat -c %u:%g $f); done; echo file=$(stat -c %u:%g /etc/own); \
        echo plain=$(stat -c %u:%g /plain/own); touch made; mkdir dir; ln -s own link; mkfifo pipe; ln own hard; mv own moved; \
        echo more >>moved; echo new=$(stat -c %u:%g made); chown 3:4 dir && echo given=$(stat -c %u:%g dir); \
        chown 5000 made 2>/dev/null || echo outside=refused; echo read=$(cat /frozen/moved | wc -l):$(stat -c %u:%g /frozen/moved); \
        touch /frozen/x 2>/dev/null || echo frozen=locked";
    let bundle = mapped(Bundle::script(script).with_capabilities(), host.path(), "/data", &["bind"], 0);
    let bundle = mapped(bundle, &host.path().join("own"), "/etc/own", &["bind"], 0);
    let bundle = mapped(bundle, host.path(), "/frozen", &["rbind", "ro", "idmap"], 5);
    let done = runtime.run(&bundle.bind(host.path(), "/plain", &[])).ok();
    let expected = [
        (".", "0:0"),
        ("own", "0:0"),
        ("foreign", NOBODY),
        ("file", "0:0"),
        ("plain", "1000:2000"),
        ("new", "0:0"),
        ("given", "3:4"),
        ("outside", "refused"),
        ("read", "2:5:5"),
        ("frozen", "locked"),
    ];
    done.assert_values(&expected);
    for name in ["made", "link", "pipe", "hard", "moved"] {
        assert_eq!(owner(&host.path().join(name)), (1000, 2000), "{name} on the host");
    }
    assert_eq!(owner(&host.path().join("dir")), (1003, 2004));
    assert_eq!(owner(&host.path().join("foreign")), (7, 7));
}

#[test]
fn an_unmapped_user_cannot_make_files() {
    if is_unsupported() {
        return;
    }
    let runtime = Runtime::new();
    let host = directory();
    fs::set_permissions(host.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let bundle = mapped(Bundle::busybox(["sleep", "1000"]), host.path(), "/data", &["rbind", "ridmap"], 0);
    let container = runtime.start_container(&bundle);
    let run = |user: &str, script: &str| runtime.call(&["exec", "--user", user, &container.id, "sh", "-c", script]);
    let done = run("50:50", "cd /data; cat own; touch new || mkdir new || ln -s own new || mkfifo new");
    assert!(done.code != 0 && done.text() == "content", "{done:?}");
    assert!(!host.path().join("new").exists());
    run("5:6", "cd /data && touch new").ok();
    assert_eq!(owner(&host.path().join("new")), (1005, 2006));
}

#[test]
fn a_mount_uses_the_user_namespaces_mappings_or_its_own() {
    if is_unsupported() {
        return;
    }
    let runtime = Runtime::new();
    let (host, other) = (tempfile::tempdir().unwrap(), directory());
    fs::set_permissions(host.path(), fs::Permissions::from_mode(0o755)).unwrap();
    make(&host.path().join("own"), 0, 0);
    let script = "for f in idmap plain frozen other; do echo $f=$(stat -c %u:%g /$f/own); done; cd /idmap; touch made; mkdir dir; \
        chown 7:8 dir; echo back=$(stat -c %u:%g made dir); touch /frozen/x 2>/dev/null || echo frozen-is=locked; \
        touch /plain/x 2>/dev/null || echo plain-is=locked; touch /other/made";
    let bundle = Bundle::script(script).with_capabilities();
    let given = Command::new("chown").args(["-R", "100000:200000"]).arg(bundle.path().join("rootfs")).status();
    assert!(given.unwrap().success());
    let bundle = bundle
        .with("/linux/namespaces/-", json!({"type": "user"}))
        .with("/linux/uidMappings", map(0, 100_000, 65_536))
        .with("/linux/gidMappings", map(0, 200_000, 65_536))
        .bind(host.path(), "/idmap", &["idmap"])
        .bind(host.path(), "/frozen", &["rbind", "ridmap", "ro", "nosuid"])
        .bind(host.path(), "/plain", &[]);
    let mount = json!({"type": "bind", "source": other.path(), "destination": "/other", "options": ["bind"],
        "uidMappings": map(1000, 100_000, 1), "gidMappings": map(2000, 200_000, 1)});
    let done = runtime.run(&bundle.with("/mounts/-", mount)).ok();
    let expected = [
        ("idmap", "0:0"),
        ("plain", NOBODY),
        ("frozen", "0:0"),
        ("other", "0:0"),
        ("back", "0:0 7:8"),
        ("frozen-is", "locked"),
        ("plain-is", "locked"),
    ];
    done.assert_values(&expected);
    assert_eq!((owner(&host.path().join("made")), owner(&host.path().join("dir"))), ((0, 0), (7, 8)));
    assert_eq!(owner(&other.path().join("made")), (1000, 2000));
}

/// A tmpfs of user 1000 and group 2000 on a directory of the host; unmounted when dropped.
struct OwnedMount<'a>(&'a Path);

impl<'a> OwnedMount<'a> {
    fn new(on: &'a Path) -> Self {
        fs::create_dir(on).unwrap();
        let status = Command::new("mount").args(["-t", "tmpfs", "sub"]).arg(on).status();
        assert!(status.unwrap().success());
        make(&on.join("own"), 1000, 2000);
        chown(on, Some(1000), Some(2000)).unwrap();
        Self(on)
    }
}

impl Drop for OwnedMount<'_> {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("--lazy").arg(self.0).status();
        assert!(thread::panicking() || status.unwrap().success());
    }
}

#[test]
fn ridmap_maps_mounts_below_and_idmap_does_not() {
    if is_unsupported() {
        return;
    }
    let runtime = Runtime::new();
    let host = directory();
    let (below, deeper) = (host.path().join("be low"), host.path().join("be low/deeper"));
    let _below = OwnedMount::new(&below);
    let _deeper = OwnedMount::new(&deeper);
    let script = "for at in idmap ridmap private bind; do echo $at=$(cd /$at; stat -c %u:%g own 'be low/own' 'be low/deeper/own' 2>/dev/null); \
        done; touch '/ridmap/be low/made' '/private/be low/deeper/made'; touch '/private/be low/x' 2>/dev/null && echo not locked; \
        stat -c %d /ridmap '/ridmap/be low' '/ridmap/be low/deeper' | sort -u | wc -l";
    let bundle = mapped(Bundle::script(script), host.path(), "/idmap", &["rbind", "idmap"], 0);
    let bundle = mapped(bundle, host.path(), "/ridmap", &["rbind", "ridmap"], 0);
    let bundle = mapped(bundle, host.path(), "/private", &["rbind", "rprivate", "ridmap"], 0);
    let done = runtime.run(&mapped(bundle, host.path(), "/bind", &["bind", "ridmap"], 0)).ok();
    let all = "0:0 0:0 0:0";
    done.assert_values(&[("idmap", "0:0 1000:2000 1000:2000"), ("ridmap", all), ("private", all), ("bind", "0:0")]);
    assert!(done.text().ends_with("\n3"), "three file systems: {done:?}");
    assert_eq!(owner(&below.join("made")), (1000, 2000));
    assert_eq!(owner(&deeper.join("made")), (1000, 2000));
}

#[test]
fn users_in_access_control_lists_are_mapped() {
    if is_unsupported() {
        return;
    }
    let runtime = Runtime::new();
    let host = directory();
    let python = "import os, struct\nentries = [(1, 6, -1), (2, 7, 3), (4, 4, -1), (16, 7, -1), (32, 0, -1)]\n\
        acl = struct.pack('<I', 2) + b''.join(struct.pack('<HHi', *entry) for entry in entries)\nname = 'system.posix_acl_access'\n\
        os.setxattr('/data/own', name, acl)\nuser = lambda path: struct.unpack_from('<HHi', os.getxattr(path, name), 12)\n\
        print(user('/data/own'), user('/plain/own'))\nos.setresuid(3, 3, 3)\nprint(open('/data/own').read().strip())\n\
        try:\n print(open('/plain/own').read())\nexcept PermissionError:\n print('refused')";
    let bundle =
        mapped(Bundle::debian(["python3", "-c", python]).with_capabilities(), host.path(), "/data", &["bind"], 0);
    let done = runtime.run(&bundle.bind(host.path(), "/plain", &[])).ok();
    assert_eq!(done.text(), "(2, 7, 3) (2, 7, 1003)\ncontent\nrefused");
}

#[test]
fn sockets_and_devices_are_mapped() {
    if is_unsupported() {
        return;
    }
    let runtime = Runtime::new();
    let host = tempfile::tempdir().unwrap();
    let path = host.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    chown(&path, Some(1000), Some(2000)).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        // In one write: the client reads once.
        stream.write_all(text.repeat(2).as_bytes()).unwrap();
    });
    let python = "import os, socket\ns = os.stat('/dev/s')\nprint(s.st_uid, s.st_gid, os.stat('/dev/other').st_uid)\n\
        open('/dev/other', 'w').write('x')\ns = socket.socket(socket.AF_UNIX)\ns.connect('/dev/s')\ns.sendall(b'a')\n\
        s.shutdown(socket.SHUT_WR)\nprint(s.recv(9))";
    let bundle = mapped(Bundle::debian(["python3", "-c", python]), &path, "/dev/s", &["bind"], 0);
    let device = json!({"type": "bind", "source": "/dev/null", "destination": "/dev/other", "options": ["bind"],
        "uidMappings": map(0, 5, 1), "gidMappings": map(0, 6, 1)});
    assert_eq!(runtime.run(&bundle.with("/mounts/-", device)).ok().text(), "0 0 5\nb'aa'");
    server.join().unwrap();
}

#[test]
fn invalid_mappings_are_refused_by_name() {
    if is_unsupported() {
        return;
    }
    let runtime = Runtime::new();
    let host = tempfile::tempdir().unwrap();
    let refused = |mount: Value| {
        let done = runtime.run(&Bundle::busybox(["true"]).with("/mounts/-", mount));
        assert_eq!(done.code, 1, "{done:?}");
        done.message()
    };
    let bind = |options: Value, uids: Value, gids: Value| {
        refused(json!({"type": "bind", "source": host.path(), "destination": "/data", "options": options,
            "uidMappings": uids, "gidMappings": gids}))
    };
    let incomplete = "invalid mount /data: id-mapped mounts must have both uid and gid mappings specified";
    let none = Value::Null;
    for message in [
        bind(json!(["bind", "idmap"]), none.clone(), none.clone()),
        bind(json!(["rbind", "ridmap"]), json!([]), none.clone()),
        bind(json!(["bind"]), map(0, 1, 1), none.clone()),
        bind(json!(["bind"]), none.clone(), map(0, 1, 1)),
    ] {
        assert!(message.contains(incomplete), "{message}");
    }
    let other = "invalid mount /data: id-mapped mounts are only supported for bind-mounts";
    let tmpfs =
        refused(json!({"type": "tmpfs", "source": "tmpfs", "destination": "/data", "uidMappings": map(0, 1, 1),
        "gidMappings": map(0, 1, 1)}));
    assert!(tmpfs.contains(other), "{tmpfs}");
    let remount = bind(json!(["bind", "remount", "ro"]), map(0, 1, 1), map(0, 1, 1));
    assert!(remount.contains(other), "{remount}");
    let twice = json!([{"containerID": 0, "hostID": 0, "size": 10}, {"containerID": 5, "hostID": 50, "size": 10}]);
    let message = bind(json!(["bind"]), twice, map(0, 1, 1));
    assert!(message.contains("set the uid_map of mount /data: invalid argument"), "{message}");
}

/// With id-mapped mounts, FUSE requests do not carry the caller's ids.
#[test]
fn a_change_without_cap_fsetid_clears_setuid() {
    let runtime = Runtime::new();
    let python = "import os\nos.chmod('/data', 0o777)\ndef mode(change, uid):\n f = '/data/program'\n open(f, 'w').write('x' * 100)\n \
        os.chown(f, 5, 5)\n os.chmod(f, 0o6777)\n pid = os.fork()\n if pid == 0:\n  os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)\n  \
        fd = os.open(f, os.O_RDWR)\n  change(fd)\n  os._exit(0)\n assert os.wait()[1] == 0\n return oct(os.stat(f).st_mode & 0o7777)\n\
        def copy(fd):\n return os.copy_file_range(os.open('/data/source', os.O_RDONLY), fd, 10)\nopen('/data/source', 'w').write('y' * 100)\n\
        for change in (lambda fd: os.write(fd, b'z'), lambda fd: os.posix_fallocate(fd, 0, 5000), copy, lambda fd: os.ftruncate(fd, 3)):\n \
        print(mode(change, 0), mode(change, 9))";
    let every = json!(["CAP_CHOWN", "CAP_FOWNER", "CAP_FSETID", "CAP_DAC_OVERRIDE", "CAP_SETUID", "CAP_SETGID"]);
    let host = tempfile::tempdir().unwrap();
    let bundle = Bundle::debian(["python3", "-c", python]).bind(host.path(), "/data", &[]).with(
        "/process/capabilities",
        json!({"bounding": every, "effective": every, "permitted": every, "inheritable": [], "ambient": []}),
    );
    assert_eq!(runtime.run(&bundle).ok().text(), ["0o6777 0o777"; 4].join("\n"));
}
