//! Docker's options for devices.

use std::process::Command;

use vmrt_tests::runtime::wait;
use vmrt_tests::terminal::Terminal;

use super::Docker;
use crate::Test;

pub const TESTS: &[Test] = &[
    ("a_dev_volume_has_the_guests_devices", a_dev_volume_has_the_guests_devices),
    ("a_privileged_container_mounts_files_by_loop_devices", a_privileged_container_mounts_files_by_loop_devices),
];

fn a_dev_volume_has_the_guests_devices() {
    let docker = Docker::new();
    let options = ["--rm", "-t", "--privileged", "-v", "/dev:/dev"];
    let mut terminal = Terminal::new(24, 80);
    let mut child = terminal.start(&docker.run_command(&options, &["sh", "-c", "tty; echo con''sole >/dev/console"]));
    terminal.expect("/dev/pts/0");
    terminal.expect("console");
    assert_eq!(wait(&mut child), 0);
    // The container has its own terminals and queues. It cannot see or damage the host's.
    let script = "rm /dev/full && echo removed=yes; echo x >/dev/null && echo null=yes; test -e /dev/kvm && echo kvm=yes; \
        echo queues=$(awk '$2 == \"/dev/mqueue\" { print $3 }' /proc/mounts); \
        echo ptys=$(exec 3<>/dev/ptmx && ls /dev/pts | grep -c '^[0-9]')";
    let done = docker.script(&options[2..], script);
    done.assert_values(&[("removed", "yes"), ("null", "yes"), ("queues", "mqueue"), ("ptys", "1")]);
    assert!(!done.text().contains("kvm=yes"), "{done:?}");
    assert!(std::path::Path::new("/dev/full").exists(), "the host's devices are left alone");
}

fn a_privileged_container_mounts_files_by_loop_devices() {
    let docker = Docker::new();
    let volume = tempfile::tempdir().expect("a directory");
    let image = volume.path().join("image");
    let made = Command::new("mkfs.ext4").arg("-q").arg(&image).arg("16M").status();
    assert!(made.expect("mkfs.ext4 starts").success(), "an ext4 was made");
    let script = "losetup -f; mkdir -p /mnt; cp /volume/image /image; for at in /image /volume/image; do \
        mount -o loop $at /mnt && echo $at >/mnt/name && cat /mnt/name; umount /mnt; done; \
        for name in fuse net/tun kmsg; do (exec 3<>/dev/$name) && echo $name; done";
    let source = format!("{}:/volume", volume.path().display());
    let text = docker.script(&["--privileged", "-v", &source], script).ok().text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines, ["/dev/loop0", "/image", "/volume/image", "fuse", "net/tun", "kmsg"]);
}
