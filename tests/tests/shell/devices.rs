//! Devices of the guest in place of the host's: the whole `/dev`, directories in it, and loop devices.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{CommandResult, Runtime, is_vmrt, new_id};

/// A file in the host's `/dev/shm`; removed when dropped.
struct SharedMemoryFile(PathBuf);

impl SharedMemoryFile {
    fn new(content: &str) -> Self {
        let path = Path::new("/dev/shm").join(new_id());
        fs::write(&path, content).expect("the host has a /dev/shm");
        Self(path)
    }

    fn name(&self) -> &str {
        self.0.to_str().expect("a text")
    }
}

impl Drop for SharedMemoryFile {
    fn drop(&mut self) {
        fs::remove_file(&self.0).expect("the file is there");
    }
}

/// The bundle as engines make it for a privileged container with the host's `/dev`: without other mounts in `/dev`.
fn with_dev(bundle: Bundle, options: &[&str]) -> Bundle {
    let mounts = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev"];
    let bundle = mounts.into_iter().fold(bundle, Bundle::without_mount);
    privileged(bundle.bind(Path::new("/dev"), "/dev", options))
}

fn privileged(bundle: Bundle) -> Bundle {
    bundle.with_capabilities().with("/linux/resources/devices", json!([{"allow": true, "access": "rwm"}]))
}

/// The lines of the message about the guest's own devices.
fn device_warnings(done: &CommandResult) -> Vec<String> {
    done.message().lines().filter(|line| line.contains("own devices")).map(str::to_owned).collect()
}

const USE_DEV: &str = "import ctypes, os, sys\nfor name in 'null zero full random urandom tty ptmx kmsg fuse net/tun loop-control console'.split():\n \
    number = os.stat('/dev/' + name).st_rdev; print(f'{name}={os.major(number)}:{os.minor(number)}')\n\
    open('/dev/null', 'w').write('x'); print('zeros=' + open('/dev/zero', 'rb').read(3).hex())\n\
    main, other = os.openpty(); print('pty=' + os.ttyname(other)); os.write(other, b'said'); print('heard=' + os.read(main, 9).decode())\n\
    print('fd=' + os.readlink('/dev/fd')); shared = sys.argv[1]; print('shared=' + open(shared).read()); open(shared, 'w').write('inside')\n\
    ctypes.CDLL(None).mq_open(b'/queue', os.O_CREAT | os.O_RDWR, 0o600, None); print('queue=%s' % os.path.exists('/dev/mqueue/queue'))\n\
    for name in 'fuse', 'net/tun', 'kmsg': os.close(os.open('/dev/' + name, os.O_RDWR))\n\
    print('kvm=%s' % os.path.exists('/dev/kvm')); print('loop=%s' % os.path.exists('/dev/loop7'))";

#[test]
fn a_dev_mount_has_the_guests_devices_and_the_hosts_shared_memory() {
    let runtime = Runtime::new();
    let shared = SharedMemoryFile::new("outside");
    let done = runtime.run(&with_dev(Bundle::debian(["python3", "-c", USE_DEV, shared.name()]), &["rbind"])).ok();
    done.assert_values(&[
        ("null", "1:3"),
        ("zero", "1:5"),
        ("full", "1:7"),
        ("random", "1:8"),
        ("urandom", "1:9"),
        ("tty", "5:0"),
        ("ptmx", "5:2"),
        ("kmsg", "1:11"),
        ("fuse", "10:229"),
        ("net/tun", "10:200"),
        ("loop-control", "10:237"),
        ("console", "5:1"),
        ("zeros", "000000"),
        ("heard", "said"),
        ("shared", "outside"),
    ]);
    assert_eq!(fs::read_to_string(&shared.0).unwrap(), "inside");
    assert!(done.value("pty").starts_with("/dev/pts/") && done.value("fd") == "/proc/self/fd", "{done:?}");
    if is_vmrt() {
        done.assert_values(&[("pty", "/dev/pts/0"), ("queue", "True"), ("kvm", "False"), ("loop", "True")]);
        let warnings = device_warnings(&done);
        let places = "/dev, /dev/mqueue, /dev/pts";
        assert!(
            warnings.len() == 1 && warnings[0].contains(&format!("in the place of the host's: {places}")),
            "{done:?}"
        );
    }
}

#[test]
fn each_container_of_a_machine_has_its_own_devpts_in_a_dev_mount() {
    let runtime = Runtime::new();
    let first = with_dev(Bundle::debian(["sleep", "1000"]), &["rbind"]);
    let first = runtime.start_container(&first);
    let joined = |(kind, file): (&str, &str)| json!({"type": kind, "path": format!("/proc/{}/ns/{file}", first.pid())});
    let mut namespaces: Vec<_> = [("network", "net"), ("ipc", "ipc")].map(joined).to_vec();
    namespaces.extend(["pid", "mount", "cgroup", "uts"].map(|kind| json!({"type": kind})));
    let second = with_dev(Bundle::debian(["sleep", "1000"]), &["rbind"]).with("/linux/namespaces", json!(namespaces));
    let second = runtime.start_container(&second);
    let python = "import os; main, other = os.openpty(); print('pty=' + os.ttyname(other)); print('null=%d' % open('/dev/null', 'w').write('four'))";
    for container in [&first, &second] {
        let done = container.exec(&["python3", "-c", python]).ok();
        assert_eq!(done.value("null"), "4");
        assert!(done.value("pty") == "/dev/pts/0" || !is_vmrt() && done.value("pty").starts_with("/dev/pts/"));
    }
}

#[test]
fn a_read_only_dev_mount_cannot_be_changed_but_its_devices_work() {
    let runtime = Runtime::new();
    let script = "for place in /dev/x /dev/net/x; do touch $place 2>/dev/null && echo open=$place; done; \
        rm /dev/full 2>/dev/null && echo removed=yes; echo x >/dev/null && echo written=yes; echo left=$(ls /dev/full); \
        echo pts=$(ls /dev/pts | head -n 1)";
    let done = runtime.run(&with_dev(Bundle::script(script), &["rbind", "ro"])).ok();
    done.assert_values(&[("written", "yes"), ("left", "/dev/full")]);
    assert!(!done.text().contains("open=") && !done.text().contains("removed="), "{done:?}");
}

#[test]
fn directories_of_dev_as_mounts_have_the_guests_devices() {
    let runtime = Runtime::new();
    let shared = SharedMemoryFile::new("outside");
    let none = Path::new("/dev").join(new_id());
    fs::create_dir(&none).unwrap();
    fs::write(none.join("file"), "").unwrap();
    let script = format!(
        "echo tun=$(stat -c %t:%T /dev/net/tun) use=$(exec 3<>/dev/net/tun && echo yes); echo terminals=$(ls /terminals | tail -n 1); \
         echo queues=$(awk '$2 == \"/queues\" {{ print $3 }}' /proc/mounts); echo shared=$(cat /shared/{}); echo none=$(ls /none); \
         echo null=$(exec 3>/host/dev/null && echo x >&3 && echo yes) pts=$(ls /host/dev/pts/ptmx); echo below=$(cat /host{})",
        shared.0.file_name().unwrap().to_str().unwrap(),
        shared.name()
    );
    let bundle = [("/dev/net", "/dev/net"), ("/dev/pts", "/terminals"), ("/dev/mqueue", "/queues")]
        .into_iter()
        .chain([("/dev/shm", "/shared"), (none.to_str().unwrap(), "/none"), ("/", "/host")])
        .fold(Bundle::script(&script), |bundle, (source, place)| bundle.bind(Path::new(source), place, &["rbind"]));
    let done = runtime.run(&privileged(bundle));
    fs::remove_dir_all(none).unwrap();
    done.ok().assert_values(&[
        ("tun", "a:c8 use=yes"),
        ("terminals", "ptmx"),
        ("queues", "mqueue"),
        ("shared", "outside"),
        ("none", if is_vmrt() { "" } else { "file" }),
        ("null", "yes pts=/host/dev/pts/ptmx"),
        ("below", "outside"),
    ]);
}

/// The host's device nodes, as engines list them for a privileged container.
fn nodes() -> Value {
    let node = |path: &str, kind, major, minor| json!({"path": path, "type": kind, "major": major, "minor": minor});
    let loops = (0..8).map(|number| node(&format!("/dev/loop{number}"), "b", 7, number));
    let others = [("fuse", 229), ("kvm", 232), ("loop-control", 237)];
    let others = others.map(|(name, minor)| node(&format!("/dev/{name}"), "c", 10, minor));
    loops.chain(others).collect::<Vec<_>>().into()
}

fn make_ext4(path: &Path) {
    let made = Command::new("mkfs.ext4").arg("-q").arg(path).arg("16M").status();
    assert!(made.expect("mkfs.ext4 starts").success(), "an ext4 was made");
}

#[test]
fn loop_devices_mount_files() {
    let runtime = Runtime::new();
    let volume = tempfile::tempdir().unwrap();
    let script = "echo free=$(losetup -f); for at in / /volume/; do mkdir -p /mnt && mount -o loop ${at}image /mnt || exit 1; \
        echo kind=$(stat -f -c %T /mnt); echo from $at >/mnt/file && mkdir /mnt/d && umount /mnt || exit 1; \
        mount -o loop,ro ${at}image /mnt && cat /mnt/file && umount /mnt || exit 1; done; losetup /dev/loop5 /image && losetup -a && losetup -d /dev/loop5";
    let bundle = Bundle::script(script).bind(volume.path(), "/volume", &["rbind"]).with("/linux/devices", nodes());
    make_ext4(&bundle.file("image"));
    make_ext4(&volume.path().join("image"));
    let done = runtime.run(&privileged(bundle)).ok();
    let text = done.text();
    assert!(text.contains("from /\n") && text.contains("from /volume/\n") && text.contains("/dev/loop5"), "{done:?}");
    assert!(done.value("free").starts_with("/dev/loop"), "{done:?}");
}

#[test]
fn single_devices_are_bound_and_made_as_configured() {
    let runtime = Runtime::new();
    let host = tempfile::tempdir().unwrap();
    for (name, numbers) in [("loop", ["b", "7", "3"]), ("control", ["c", "10", "237"]), ("cuse", ["c", "10", "203"])] {
        assert!(Command::new("mknod").arg(host.path().join(name)).args(numbers).status().unwrap().success());
    }
    let device = |path: &str, kind, major, minor| json!({"path": path, "type": kind, "major": major, "minor": minor});
    let rule = |kind: &str, major: u32, minor: u32| json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": "rwm"});
    let script = "exec 2>/dev/null; for at in /mounted /dev; do \
        echo $at=$(stat -c %t:%T $at/loop3 $at/control); losetup $at/loop3 /file && echo used=$at && losetup -d $at/loop3; done; \
        (exec 3</dev/loop4) || echo denied; (exec 3<>/dev/kmsg) && echo kmsg; stat -c %t:%T /cuse";
    let bundle = Bundle::script(script)
        .with_capabilities()
        .bind(&host.path().join("loop"), "/mounted/loop3", &[])
        .bind(&host.path().join("control"), "/mounted/control", &[])
        .bind(&host.path().join("cuse"), "/cuse", &[])
        .with(
            "/linux/devices",
            json!([
                device("/dev/loop3", "b", 7, 3),
                device("/dev/loop4", "b", 7, 4),
                device("/dev/control", "c", 10, 237),
                device("/dev/mapper/control", "c", 10, 236),
                device("/dev/kmsg", "c", 1, 11),
            ]),
        )
        .with(
            "/linux/resources/devices",
            json!([{"allow": false, "access": "rwm"}, rule("b", 7, 3), rule("c", 10, 237), rule("c", 1, 11)]),
        );
    fs::write(bundle.file("file"), [0; 4096]).unwrap();
    let text = runtime.run(&bundle).ok().text();
    let expected = ["/mounted=7:3 a:ed", "used=/mounted", "/dev=7:3 a:ed", "used=/dev", "denied", "kmsg", "a:cb"];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
}
