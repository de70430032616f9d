//! The network of a container: the interfaces of its network namespace.

mod anti_spoofing;
pub(crate) mod namespace;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{FlockOperation, flock};
use serde_json::json;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Container, Runtime, is_vmrt, new_id};
use vmrt_tests::{TIMEOUT, eventually};

use namespace::{Network, tool};

/// Listens on an address of the host.
fn listen(address: &str) -> TcpListener {
    TcpListener::bind(address).expect("the host listens")
}

fn connect(address: &str) -> TcpStream {
    let connected = eventually(TIMEOUT, || TcpStream::connect(address).ok());
    let stream = connected.unwrap_or_else(|| panic!("{address} does not answer"));
    stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    stream
}

#[test]
fn the_guests_interface_is_configured_as_in_the_namespace() {
    let network = Network::new(1);
    network.ip("route add default via 10.99.1.1");
    network.ip("route add 192.0.2.0/24 via 10.99.1.1 src 10.99.1.2 metric 77 mtu 1300");
    network.ip("route add 198.51.100.0/24 via 203.0.113.1 dev eth0 onlink");
    network.ip("route add default via fd99:1::1");
    network.ip("neighbour add 10.99.1.9 lladdr 02:99:00:00:00:99 dev eth0");
    let runtime = Runtime::new();
    let bundle = network.join(Bundle::busybox(["sleep", "1000"]));
    let expected = |what: &str| {
        let text = network.ip(what);
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    let (routes, routes6) = (expected("route"), expected("-6 route"));
    let container = runtime.start_container(&bundle);
    let lines = |script: &str| {
        let text = container.script(script).ok().text();
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    assert_eq!(lines("ls /sys/class/net"), ["eth0", "lo"]);
    assert_eq!(lines("cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu"), ["02:99:00:00:00:01", "1400"]);
    let addresses = lines("ip -o address show dev eth0").join("\n");
    assert!(addresses.contains("inet 10.99.1.2/24 brd 10.99.1.255"), "{addresses}");
    assert!(addresses.contains("inet6 fd99:1::2/64"), "{addresses}");
    let guest = lines("ip route");
    // Busybox does not print all attributes.
    for (route, words) in [
        ("default", vec!["via 10.99.1.1", "dev eth0"]),
        ("192.0.2.0/24", vec!["via 10.99.1.1", "src 10.99.1.2", "metric 77"]),
        ("198.51.100.0/24", vec!["via 203.0.113.1", "onlink"]),
        ("10.99.1.0/24", vec!["dev eth0", "src 10.99.1.2"]),
    ] {
        let line = guest.iter().find(|line| line.starts_with(route)).unwrap_or_else(|| panic!("no {route}: {guest:?}"));
        words.iter().for_each(|word| assert!(line.contains(word), "{word}: {line}"));
    }
    assert_eq!(guest.len(), routes.len(), "{guest:?} {routes:?}");
    let guest6 = lines("ip -6 route");
    assert!(guest6.iter().any(|line| line.starts_with("default via fd99:1::1 dev eth0")), "{guest6:?} {routes6:?}");
    let neighbours = lines("ip neigh").join("\n");
    assert!(neighbours.contains("10.99.1.9 dev eth0 lladdr 02:99:00:00:00:99"), "{neighbours}");
}

/// The lines about `eth0`, with single spaces, sorted.
fn of_eth0(text: &str) -> Vec<String> {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut lines: Vec<_> = text.lines().map(words).filter(|line| line.contains(" dev eth0 ")).collect();
    lines.sort();
    lines
}

#[test]
fn routes_keep_all_their_attributes() {
    let network = Network::new(21);
    for route in [
        "192.0.2.0/24 via 10.99.21.1 metric 5 mtu lock 1200 advmss 1100 window 4000 rtt lock 100ms rttvar 50ms ssthresh 40 cwnd lock 20 \
         hoplimit 33 reordering 7 initcwnd 12 initrwnd 14 quickack 1 features ecn rto_min 60ms congctl reno",
        "192.0.2.0/24 via 10.99.21.1 tos 0x10 proto static",
        "203.0.113.0/24 dev eth0 scope link src 10.99.21.2 proto 42 advmss 900",
        "local 198.51.100.7 dev eth0 table 100",
        "local 198.51.100.8 dev eth0",
        "broadcast 198.51.100.255 dev eth0 table 100",
        "2001:db8::/32 via fd99:21::1 metric 50 pref high mtu 1300 hoplimit 9 advmss 1000",
        "2001:db8:1::/48 via fd99:21::1 metric 50 expires 4000",
    ] {
        network.ip(&format!("{}route add {route}", if route.contains("::") { "-6 " } else { "" }));
    }
    let runtime = Runtime::new();
    // The host's `ip` prints the routes in the guest, too.
    let bundle = network.join(Bundle::busybox(["sleep", "1000"])).bind(Path::new("/usr"), "/host", &["ro"]);
    let container = runtime.start_container(&bundle);
    let ip = |arguments: &str| {
        let loader =
            "/host/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --library-path /host/lib/x86_64-linux-gnu /host/bin/ip";
        container.script(&format!("{loader} {arguments}")).ok().text()
    };
    let all = "-d -4 route show table all";
    assert_eq!(of_eth0(&ip(all)), of_eth0(&network.ip(all)));
    // The remaining lifetime has changed meanwhile.
    let lasting = |text: &str| {
        let lines = of_eth0(text).into_iter().filter(|line| line.starts_with("unicast 2001:db8:"));
        let until = |line: String| line.split(" expires ").next().map(str::to_owned).map(|start| (start, line));
        lines.filter_map(until).map(|(start, line)| (start, line.contains(" expires 39"))).collect::<Vec<_>>()
    };
    let all = "-d -6 route show table all";
    let (guest, host) = (lasting(&ip(all)), lasting(&network.ip(all)));
    assert_eq!(guest, host);
    assert_eq!(guest.iter().map(|(_, expires)| *expires).collect::<Vec<_>>(), [true, false], "{guest:?}");
}

#[test]
fn pings_and_streams_work_in_both_directions() {
    let network = Network::new(2);
    let runtime = Runtime::new();
    // The guest echoes everything.
    let bundle = network.join(Bundle::busybox(["nc", "-ll", "-p", "7000", "-e", "cat"]));
    let container = runtime.start_container(&bundle);
    container.script("ping -c 3 -w 60 10.99.2.1").ok();
    container.script("ping -c 1 -s 1372 -w 60 10.99.2.1").ok();
    container.script("ping -6 -c 1 -w 60 fd99:2::1").ok();
    for address in ["10.99.2.2:7000", "[fd99:2::2]:7000"] {
        // More data than fits into all buffers on the path, in large segments.
        let sent: Vec<u8> = (0..3_000_000_u32).map(|index| index.to_le_bytes()[(index % 3) as usize]).collect();
        let mut stream = connect(address);
        let mut writer = stream.try_clone().expect("a descriptor");
        let copy = sent.clone();
        let sender = std::thread::spawn(move || writer.write_all(&copy));
        let mut received = vec![0; sent.len()];
        stream.read_exact(&mut received).expect("the echo");
        sender.join().expect("the sender").expect("all was sent");
        assert!(received == sent, "{address}: other bytes came back");
    }
    let listener = listen("10.99.2.1:7001");
    let answer = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().expect("the guest connects");
        stream.write_all(b"from the host\n").expect("the answer is sent");
        peer.ip().to_string()
    });
    assert_eq!(container.script("nc -w 60 10.99.2.1 7001 </dev/null").ok().text(), "from the host");
    assert_eq!(answer.join().expect("the listener"), "10.99.2.2");
}

#[test]
fn two_containers_with_two_interfaces_each_connect_over_a_bridge() {
    let networks = [Network::new(3), Network::new(4)];
    tool("ip link add vbr3 type bridge");
    for (network, address) in networks.iter().zip([2, 3]) {
        let host = format!("vb{address}");
        tool(&format!("ip link add {host} type veth peer name net1 netns {}", network.name));
        tool(&format!("ip link set {host} master vbr3 up"));
        network.ip(&format!("address add 10.98.0.{address}/24 dev net1"));
        network.ip("link set net1 up");
    }
    tool("ip link set vbr3 up");
    {
        let runtime = Runtime::new();
        let server =
            networks[0].join(Bundle::script("while true; do echo hello from $(hostname) | nc -l -p 7000; done"));
        let server = server.with("/hostname", json!("server"));
        let client = networks[1].join(Bundle::busybox(["sleep", "1000"]));
        let _server = runtime.start_container(&server);
        let client = runtime.start_container(&client);
        let answer = eventually(TIMEOUT, || {
            let answer = client.script("nc -w 10 10.98.0.2 7000 </dev/null");
            (answer.code == 0 && !answer.stdout.is_empty()).then(|| answer.text())
        });
        assert_eq!(answer.as_deref(), Some("hello from server"));
        assert_eq!(client.script("ls /sys/class/net").ok().text().lines().collect::<Vec<_>>(), ["eth0", "lo", "net1"]);
        client.script("ping -c 1 -w 60 10.99.4.1").ok();
        let wrong = client.script("ping -c 1 -w 2 10.99.3.2");
        assert_ne!(wrong.code, 0, "the networks are apart");
    }
    tool("ip link delete vbr3");
}

#[test]
fn nothing_is_left_in_the_namespace() {
    let network = Network::new(5);
    let runtime = Runtime::new();
    let before = network.inventory();
    runtime.run(&network.join(Bundle::script("ping -c 1 -w 60 10.99.5.1"))).ok();
    assert_eq!(network.inventory(), before, "after run");
    let missing = runtime.run(&network.join(Bundle::busybox(["/no/such/program"])));
    assert_ne!(missing.code, 0);
    assert_eq!(network.inventory(), before, "after a create that failed");
    let bundle = network.join(Bundle::busybox(["sleep", "1000"]));
    let container = runtime.start_container(&bundle);
    if is_vmrt() {
        let second = runtime.run(&bundle);
        assert_ne!(second.code, 0);
        assert!(second.message().contains("eth0: its incoming traffic is another"), "{second:?}");
        container.script("ping -c 1 -w 60 10.99.5.1").ok();
    }
    tool(&format!("kill -KILL {}", container.pid()));
    container.await_status("stopped");
    drop(container);
    assert_eq!(network.inventory(), before, "after the VMM was killed");
    // The namespace can be used again.
    runtime.run(&network.join(Bundle::script("ping -c 1 -w 60 10.99.5.1"))).ok();
}

/// Adds an interface to a container with a new network namespace, as an engine does.
fn add_to(container: &Container<'_>) {
    let pid = container.pid();
    tool(&format!("ip link add vh6 type veth peer name eth0 netns {pid}"));
    tool("ip address add 10.99.6.1/24 dev vh6");
    tool("ip link set vh6 up");
    let inside = |line: &str| tool(&format!("nsenter --net=/proc/{pid}/ns/net ip {line}"));
    inside("address add 10.99.6.2/24 dev eth0");
    inside("link set eth0 up");
    inside("route add default via 10.99.6.1");
}

#[test]
fn an_interface_added_between_create_and_start_is_there_at_the_start() {
    let runtime = Runtime::new();
    let script = "ip route >/routes; ping -c 1 -w 60 10.99.6.1 >/ping; exec sleep 1000";
    let bundle = Bundle::script(script).with_capabilities();
    let container = runtime.create_container(&bundle);
    add_to(&container);
    container.call("start", &[]).ok();
    container.script("ping -c 1 -w 60 10.99.6.1").ok();
    let routes = eventually(TIMEOUT, || container.script("cat /routes").text().contains("default").then_some(()));
    assert!(routes.is_some(), "the program ran before its network was there");
}

#[test]
fn interfaces_are_attached_changed_and_detached_while_the_guest_runs() {
    let network = Network::new(10);
    let before = network.inventory();
    let runtime = Runtime::new();
    let bundle = network.join(Bundle::busybox(["sleep", "1000"]));
    let container = runtime.start_container(&bundle);
    let has = |what: &str, is_there| {
        let reached = eventually(TIMEOUT, || ((container.script(what).code == 0) == is_there).then_some(()));
        assert!(reached.is_some(), "{what} is not {is_there}: {:?}", container.script("ip address; ip route"));
    };
    for _ in 0..2 {
        network.add_interface(11, "eth1");
        network.ip("route add 192.0.2.0/24 via 10.99.11.1");
        has("ip route | grep '^192.0.2.0/24 via 10.99.11.1 dev eth1'", true);
        assert_eq!(container.script("cat /sys/class/net/eth1/address").ok().text(), "02:99:00:00:00:0b");
        container.script("ping -c 1 -w 60 10.99.11.1 && ping -6 -c 1 -w 60 fd99:11::1").ok();
        // Addresses and routes change, too.
        network.ip("address add 10.99.11.9/24 dev eth1");
        has("ip -4 -o address show dev eth1 | grep -F 10.99.11.9/24", true);
        network.ip("link set eth1 mtu 1400");
        network.ip("address delete 10.99.11.9/24 dev eth1");
        network.ip("route delete 192.0.2.0/24");
        network.ip("route add 192.0.2.0/24 via 10.99.10.1");
        has("ip route | grep '^192.0.2.0/24 via 10.99.10.1 dev eth0'", true);
        has("ip -4 -o address show dev eth1 | grep -F 10.99.11.9/24", false);
        has("grep -x 1400 /sys/class/net/eth1/mtu", true);
        container.script("ping -c 1 -w 60 10.99.11.1 && ping -6 -c 1 -w 60 fd99:11::1").ok();
        // The interface that has the route is deleted, and another one gets the route.
        network.ip("route replace 192.0.2.0/24 via 10.99.11.1");
        has("ip route | grep '^192.0.2.0/24 via 10.99.11.1 dev eth1'", true);
        network.ip("link delete eth1");
        network.ip("route add 192.0.2.0/24 via 10.99.10.1");
        has("ip route | grep '^192.0.2.0/24 via 10.99.10.1 dev eth0'", true);
        network.ip("route delete 192.0.2.0/24");
        has("test -e /sys/class/net/eth1", false);
        container.script("ping -c 1 -w 60 10.99.10.1").ok();
    }
    drop(container);
    assert_eq!(network.inventory(), before, "something is left");
}

/// The command that the helper runs waits for the lock of the container, which `delete` holds while it waits for the cgroup to be empty.
#[test]
fn a_command_of_the_helper_ends_with_the_vmm() {
    if !is_vmrt() {
        return;
    }
    let network = Network::new(12);
    let runtime = Runtime::new();
    let bundle = network.join(Bundle::busybox(["sleep", "1000"]));
    let container = runtime.start_container(&bundle);
    let cgroup = format!("/sys/fs/cgroup/vmrt-{}/cgroup.procs", container.id);
    let processes = || fs::read_to_string(&cgroup).unwrap();
    let updates = |pid: &str| {
        fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.contains("update-interfaces"))
    };
    let lock = File::open(runtime.root().join(&container.id).join("lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    network.ip("link set eth0 mtu 1300");
    let is_waiting = eventually(TIMEOUT, || processes().lines().any(updates).then_some(()));
    assert!(is_waiting.is_some(), "no command was started: {}", processes());
    kill(Pid::from_raw(container.pid()), Signal::SIGKILL).unwrap();
    let is_empty = eventually(Duration::from_secs(5), || processes().is_empty().then_some(()));
    assert!(is_empty.is_some(), "a process is left: {}", processes());
    drop(lock);
    container.call("delete", &["--force"]).ok();
}

#[test]
fn a_namespace_with_only_a_loopback_uses_no_network_device() {
    let runtime = Runtime::new();
    let script = "ls /sys/class/net; ls /sys/bus/virtio/drivers/virtio_net 2>/dev/null | grep -c '^virtio' ; ping -c 1 -w 60 127.0.0.1 >/dev/null && echo up";
    let bundle = Bundle::script(script).with_capabilities();
    // A template's machine has network devices for later interfaces.
    let config = tempfile::NamedTempFile::new().unwrap();
    fs::write(config.path(), "template = false").unwrap();
    let boots: &[&str] = if is_vmrt() { &["--config", config.path().to_str().unwrap()] } else { &[] };
    let id = new_id();
    let run = ["run", "--bundle", bundle.path().to_str().unwrap(), &id];
    let done = runtime.call(&[boots, run.as_slice()].concat()).ok();
    let text = done.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!((lines[0], lines[lines.len() - 1]), ("lo", "up"), "{lines:?}");
    if is_vmrt() {
        assert_eq!(lines[1], "0", "network devices in the machine");
        let from_template = runtime.run(&bundle).ok().text();
        assert!(from_template.starts_with("lo\n") && from_template.ends_with("up"), "{from_template}");
    }
}

#[test]
fn a_route_with_several_next_hops_is_refused_by_name() {
    if !is_vmrt() {
        return;
    }
    let network = Network::new(7);
    network.add_interface(8, "eth1");
    network.ip("route add 192.0.2.0/24 nexthop via 10.99.7.1 nexthop via 10.99.8.1");
    let runtime = Runtime::new();
    let before = network.inventory();
    let bundle = network.join(Bundle::busybox(["true"]));
    let done = runtime.run(&bundle);
    assert_ne!(done.code, 0);
    assert!(done.message().contains("its route to 192.0.2.0/24 has several next hops"), "{done:?}");
    assert_eq!(network.inventory(), before);
}

#[test]
fn many_concurrent_connections_are_served() {
    let network = Network::new(9);
    let runtime = Runtime::new();
    let server = "import shutil, socketserver\nclass Echo(socketserver.StreamRequestHandler):\n \
        def handle(self): shutil.copyfileobj(self.rfile, self.wfile, 1000)\n\
        class Server(socketserver.ThreadingTCPServer): request_queue_size = 64\n\
        Server(('', 7000), Echo).serve_forever()";
    let bundle = network.join(Bundle::debian(["python3", "-c", server]));
    let container = runtime.start_container(&bundle);
    connect("10.99.9.2:7000");
    let clients: Vec<_> = (0..20_u8)
        .map(|number| {
            std::thread::spawn(move || {
                let mut stream = connect("10.99.9.2:7000");
                let sent = vec![number; 50_000];
                let mut received = vec![0; sent.len()];
                stream.write_all(&sent).expect("sent");
                stream.read_exact(&mut received).expect("received");
                received == sent
            })
        })
        .collect();
    assert!(clients.into_iter().all(|client| client.join().expect("a client")));
    // A guest without a listener refuses connections; it does not drop them.
    let refused = TcpStream::connect_timeout(&"10.99.9.2:7009".parse().expect("an address"), Duration::from_secs(60));
    assert_eq!(refused.expect_err("nobody listens").kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(container.status(), "running");
}
