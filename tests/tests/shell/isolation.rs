//! Two sandboxes at the same time are isolated from each other and from the host.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use serde_json::json;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Container, Runtime, is_vmrt, wait};
use vmrt_tests::{TIMEOUT, eventually};

/// A Python program that tries to make vsock sockets of all three types, and prints the result for each.
const MAKE_SOCKETS: &str = "
import errno, socket
def result(kind):
    try:
        socket.socket(socket.AF_VSOCK, kind)
        return 'made'
    except OSError as error:
        return errno.errorcode[error.errno]
print(*map(result, (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)))";

fn python(program: &str) -> Bundle {
    Bundle::debian(["python3", "-c", program])
}

fn as_user(bundle: Bundle, user: u32) -> Bundle {
    bundle.with("/process/user", json!({"uid": user, "gid": user}))
}

fn with_vsock(bundle: Bundle) -> Bundle {
    bundle.with("/linux/sysctl", json!({"net.vsock.enabled": "1"}))
}

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
    let bundles = [with_vsock(python(listen)), Bundle::busybox(["sleep", "1000"])];
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
fn a_container_has_no_vsock_sockets() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    for user in [0, 1000] {
        let done = runtime.run(&as_user(python(MAKE_SOCKETS), user)).ok();
        assert_eq!(done.text(), ["EAFNOSUPPORT"; 3].join(" "), "user {user}");
    }
}

#[test]
fn a_configuration_can_ask_for_vsock_sockets() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    // A guest has no transport for the other types.
    let made = |bundle: Bundle| runtime.run(&with_vsock(bundle)).ok().text();
    let first = |text: String| text.split(' ').next().unwrap_or_default().to_owned();
    for user in [0, 1000] {
        assert_eq!(first(made(as_user(python(MAKE_SOCKETS), user))), "made", "user {user}");
    }
    let map = json!([{"containerID": 0, "hostID": 0, "size": 65_536}]);
    let mapped = python(MAKE_SOCKETS)
        .with("/linux/namespaces/-", json!({"type": "user"}))
        .with("/linux/uidMappings", map.clone())
        .with("/linux/gidMappings", map);
    assert_eq!(first(made(mapped)), "made", "in a user namespace");
}

#[test]
fn the_root_of_a_user_namespace_cannot_enable_vsock_sockets() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    // CLONE_NEWUSER | CLONE_NEWNET
    let enable = "
import ctypes, errno, os
assert ctypes.CDLL(None).unshare(0x50000000) == 0
file = os.open('/proc/sys/net/vsock/enabled', os.O_RDWR)
print('before=' + os.read(file, 9).decode().strip())
try:
    os.pwrite(file, b'1', 0)
    print('write=done')
except OSError as error:
    print('write=' + errno.errorcode[error.errno])";
    for user in [0, 1000] {
        let bundle = as_user(python(&format!("{enable}{MAKE_SOCKETS}")), user).with("/linux/readonlyPaths", json!([]));
        let done = runtime.run(&with_vsock(bundle)).ok();
        done.assert_values(&[("before", "0"), ("write", "EPERM")]);
        assert!(done.text().ends_with(&["EAFNOSUPPORT"; 3].join(" ")), "user {user}: {}", done.text());
    }
}

/// A `cat` in a container whose standard input stays open.
struct Cat {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Cat {
    fn start(runtime: &Runtime, container: &Container<'_>) -> Self {
        let mut command = runtime.command(&["exec", &container.id, "cat"]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        Self { process, input, output }
    }

    /// Sends a line and returns the line that comes back.
    fn echo(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }

    fn end(self) -> i32 {
        let Self { mut process, input, .. } = self;
        drop(input);
        wait(&mut process)
    }
}

#[test]
fn a_process_without_the_secret_reaches_no_stream_and_no_socket_of_the_host() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let host = tempfile::tempdir().unwrap();
    let path = host.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let bundle = with_vsock(Bundle::debian(["sleep", "1000"])).bind(&path, "/dev/s", &[]);
    let container = runtime.start_container(&bundle);
    let mut cat = Cat::start(&runtime, &container);
    assert_eq!(cat.echo("before"), "before");
    let probe = "
import socket
reached = 0
for port in range(1024, 1101):
    for first in (b'', b'x' * 15, b'x' * 16, b'x' * 5000):
        s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        s.settimeout(1)
        try:
            s.connect((2, port))
            reached += 1
            s.sendall(first)
            if data := s.recv(100): print('data', port, data)
        except OSError: pass
        s.close()
print(reached > 0)";
    for user in ["0", "1000"] {
        let done = runtime.call(&["exec", "--user", user, &container.id, "python3", "-c", probe]).ok();
        // The port of the mounted socket accepts connections, which shows that the probe reaches the host.
        assert_eq!(done.text(), "True", "user {user}");
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        assert_eq!(cat.echo("after"), "after");
    }
    assert_eq!(cat.end(), 0);
    let client = "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('/dev/s')\ns.sendall(b'a')";
    container.exec(&["python3", "-c", client]).ok();
    assert!(eventually(TIMEOUT, || listener.accept().ok()).is_some(), "the socket is reached by its path");
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
