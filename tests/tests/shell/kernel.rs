//! Features of the guest's kernel that programs expect.

use std::fs;
use std::path::Path;

use serde_json::json;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Runtime, is_vmrt};

#[test]
fn kernel_features_that_tools_use_are_present() {
    let runtime = Runtime::new();
    // The host's programs run in the container's network namespace.
    let script = "for tool in iptables-legacy ip6tables-legacy; do echo $tool=$(for table in filter nat mangle raw security; do \
        chroot /host $tool -t $table -S | wc -l; done); done; \
        chroot /host iptables-legacy -A INPUT -p tcp --dport 7 -j REJECT && chroot /host iptables-legacy -S | grep -q dport && echo rule=kept; \
        [ $(cat /proc/self/smaps | wc -l) -gt 50 ] && grep -q ^Pss /proc/self/smaps_rollup && echo smaps=there; \
        echo pagemap=$(head -c 8 /proc/self/pagemap | wc -c); echo dnotify=$(cat /proc/sys/fs/dir-notify-enable); \
        echo links=$(cd /sys/class/net; echo *); \
        for kind in 'vrf table 10' 'dummy' 'bridge'; do chroot /host /bin/ip link add type $kind && echo ${kind%% *}=made; done; \
        for kind in squashfs iso9660 vfat ext4 overlay; do grep -qw $kind /proc/filesystems && echo $kind=known; done; true";
    let bundle = Bundle::script(script)
        .with_capabilities()
        .bind(Path::new("/"), "/host", &["ro"])
        // iptables-legacy needs a lock file there.
        .with("/mounts/-", json!({"type": "tmpfs", "source": "tmpfs", "destination": "/host/run"}))
        .with("/process/capabilities/bounding/-", json!("CAP_SYS_CHROOT"));
    let bundle = ["effective", "permitted"]
        .iter()
        .fold(bundle, |bundle, set| bundle.with(&format!("/process/capabilities/{set}/-"), json!("CAP_SYS_CHROOT")));
    if !is_vmrt() {
        return; // On the host, the test would leave kernel modules loaded.
    }
    let done = runtime.run(&bundle).ok();
    for tool in ["iptables-legacy", "ip6tables-legacy"] {
        done.assert_values(&[(tool, "3 4 5 2 3")]);
    }
    done.assert_values(&[("rule", "kept"), ("smaps", "there"), ("pagemap", "8"), ("dnotify", "1"), ("links", "lo")]);
    for link in ["vrf", "dummy", "bridge"] {
        done.assert_values(&[(link, "made")]);
    }
    for kind in ["squashfs", "iso9660", "vfat", "ext4", "overlay"] {
        done.assert_values(&[(kind, "known")]);
    }
}

/// The host's memory and swap in bytes.
fn host_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let value =
        |name| text.lines().find_map(|line| line.strip_prefix(name)?.strip_suffix("kB")?.trim().parse::<u64>().ok());
    (value("MemTotal:").unwrap() + value("SwapTotal:").unwrap()) << 10
}

#[test]
fn allocations_are_bounded_by_the_hosts_memory() {
    let runtime = Runtime::new();
    let host = host_memory();
    let python = "import mmap, sys\ndef allocate(size):\n try:\n  mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()\n  \
        return 'granted'\n except OSError as error:\n  return error.strerror\nhost = int(sys.argv[1])\n\
        print(f'part={allocate(host // 2)}\\nnearly={allocate(host - (1 << 20))}\\nmore={allocate(2 * host)}')\n\
        print('policy=' + open('/proc/sys/vm/overcommit_memory').read())";
    let bundle = Bundle::debian(["python3", "-c", python, &host.to_string()])
        .with("/linux/resources/memory", json!({"limit": 128 << 20}));
    let done = runtime.run(&bundle).ok();
    done.assert_values(&[
        ("part", "granted"),
        ("nearly", "granted"),
        ("more", "Cannot allocate memory"),
        ("policy", "0"),
    ]);
}
