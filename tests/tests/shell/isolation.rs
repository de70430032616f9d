//! Two sandboxes at the same time are isolated from each other and from the host.

use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Runtime, is_vmrt};

#[test]
fn two_sandboxes_share_no_processes_files_or_network() {
    let runtime = Runtime::new();
    let first = Bundle::script("echo secret >/tmp/first; nc -l -p 8080 & exec sleep 1234");
    let second = Bundle::script("exec sleep 1000");
    let first = runtime.start_container(&first);
    let second = runtime.start_container(&second);
    let waited = "for i in $(seq 50); do netstat -ltn | grep -q :8080 && exit 0; sleep 0.1; done; exit 1";
    first.script(waited).ok();
    let script = "echo processes=$(ps | grep -c '[s]leep 1234'); echo file=$(ls /tmp | wc -l); \
        nc -w 2 127.0.0.1 8080 </dev/null >/dev/null 2>&1 && echo network=open || echo network=closed; \
        echo listeners=$(netstat -ltn | grep -c :8080)";
    let done = second.script(script).ok();
    done.assert_values(&[("processes", "0"), ("file", "0"), ("network", "closed"), ("listeners", "0")]);
    assert_eq!(first.script("ps | grep -c '[s]leep 1234'").ok().text(), "1");
    if is_vmrt() {
        let boot_id = |container: &vmrt_tests::runtime::Container<'_>| {
            container.script("cat /proc/sys/kernel/random/boot_id").ok().text()
        };
        assert_ne!(boot_id(&first), boot_id(&second), "two kernels");
    }
}

#[test]
fn no_vsock_address_answers_a_guest() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let listen = "import socket, time\ns = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)\ns.bind((socket.VMADDR_CID_ANY, 5000))\n\
        s.listen()\ntime.sleep(1000)";
    let bundles = [Bundle::debian(["python3", "-c", listen]), Bundle::busybox(["sleep", "1000"])];
    let [first, second] = bundles.each_ref().map(|bundle| runtime.start_container(bundle));
    // A process in a guest reaches neither the other guest nor the host, nor the port of its own agent.
    let probe = "import socket\nfor cid, port in [(c, 5000) for c in (0, 2, 4, 5, 6, 7)] + [(2, p) for p in range(1020, 1040)]:\n \
        s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)\n s.settimeout(3)\n try:\n  s.connect((cid, port))\n  \
        print('reached', cid, port)\n except OSError: pass\nprint('done')";
    let done = first.exec(&["python3", "-c", probe]).ok();
    assert_eq!(done.text(), "done");
    assert_eq!(second.status(), "running");
    second.exec(&["true"]).ok();
}

#[test]
fn the_guest_kernel_is_not_the_host_kernel() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let done =
        runtime.run(&Bundle::script("echo kernel=$(uname -r); echo boot=$(cat /proc/sys/kernel/random/boot_id)")).ok();
    let host = |path: &str| std::fs::read_to_string(path).unwrap().trim().to_string();
    assert_ne!(done.value("kernel"), host("/proc/sys/kernel/osrelease"));
    assert_ne!(done.value("boot"), host("/proc/sys/kernel/random/boot_id"));
}
