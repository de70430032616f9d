//! Docker's networks.

use std::io::{Read, Write};
use std::net::TcpStream;

use vmrt_tests::{TIMEOUT, eventually};

use super::Docker;
use crate::Test;

pub const TESTS: &[Test] = &[
    ("the_gateway_answers", the_gateway_answers),
    ("a_published_port_is_reached_from_the_host", a_published_port_is_reached_from_the_host),
    ("containers_resolve_each_others_names", containers_resolve_each_others_names),
    (
        "network_connect_and_disconnect_work_on_a_running_container",
        network_connect_and_disconnect_work_on_a_running_container,
    ),
    ("a_container_joins_anothers_namespaces", a_container_joins_anothers_namespaces),
    ("network_none_has_only_the_loopback_and_host_is_refused", network_none_has_only_the_loopback_and_host_is_refused),
];

/// A script that serves a page.
const SERVER: &str = "echo served >/index.html; exec httpd -f -p 80 -h /";

/// A query for the address of `server` over TCP: its length, a header, the name, type and class.
const QUERY: &str = r"\000\030\022\064\001\000\000\001\000\000\000\000\000\000\006server\000\000\001\000\001";

/// Waits until the server at this address answers, and returns the page.
pub fn page(address: &str) -> String {
    let page = eventually(TIMEOUT, || {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(TIMEOUT)).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok().filter(|length| *length > 0)?;
        text.rsplit("\r\n\r\n").next().map(str::to_string)
    });
    page.unwrap_or_else(|| panic!("{address} does not answer"))
}

fn the_gateway_answers() {
    let docker = Docker::new();
    let script = "gateway=$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'); ping -c 1 -w 20 $gateway && \
        echo name=$(hostname) $(hostname -i)";
    let done = docker.script(&["--hostname", "named"], script).ok();
    assert!(done.text().contains("1 packets received"), "{done:?}");
    assert!(done.value("name").starts_with("named 172."), "{done:?}");
}

fn a_published_port_is_reached_from_the_host() {
    let docker = Docker::new();
    let container = docker.detached(&["--publish", "8080:80"], SERVER);
    assert_eq!(page("127.0.0.1:8080"), "served\n");
    assert_eq!(page(&format!("{}:8080", container.inspect(".NetworkSettings.Gateway"))), "served\n");
    assert_eq!(page(&format!("{}:80", container.inspect(".NetworkSettings.IPAddress"))), "served\n");
}

fn a_container_joins_anothers_namespaces() {
    let docker = Docker::new();
    let server = docker.detached(&["--ipc", "shareable"], SERVER);
    let [network, pid, ipc] = ["network", "pid", "ipc"].map(|kind| format!("--{kind}=container:{}", server.name));
    let address = server.inspect(".NetworkSettings.IPAddress");
    let script = "wget -q -O - http://127.0.0.1/; hostname -i; ps | grep -c '[h]ttpd'; exit 5";
    let done = docker.script(&[&network, &pid, &ipc], script);
    assert_eq!((done.code, done.text()), (5, format!("served\n{address}\n1")), "{done:?}");
    let beside = docker.detached(&[&network], "trap 'exit 0' TERM; echo there; while :; do sleep 0.1; done");
    beside.await_log("there");
    assert!(beside.exec("wget -q -O - http://127.0.0.1/").ok().text().contains("served"));
    beside.call(&["stop"], &[]).ok();
    assert_eq!(beside.inspect(".State.ExitCode"), "0");
    beside.call(&["start"], &[]).ok();
    assert!(beside.exec("wget -q -O - http://127.0.0.1/").ok().text().contains("served"));
    assert_eq!(page(&format!("{address}:80")), "served\n");
}

/// Docker's name server does not occupy any port of the container.
fn containers_resolve_each_others_names() {
    let docker = Docker::new();
    docker.call(&["network", "create", "vmrt-test"]).ok();
    {
        let server = docker.detached(&["--network", "vmrt-test", "--network-alias", "server"], SERVER);
        let script = format!(
            "nslookup server >/answer || cat /answer; address=$(sed -n 's/^Address: //p' /answer | tail -n 1); \
             echo address=$address; echo page=$(wget -q -O - http://$address/); \
             echo stream=$(printf '{QUERY}' | nc -w 20 127.0.0.11 53 | tail -c 4 | od -A n -t u1); \
             for i in 1 2 3 4 5 6 7 8; do nslookup server >/many$i & done; wait; echo many=$(grep -l $address /many* | wc -l); \
             timeout 2 nc -l -p 53; echo port=$?; nslookup nothing.invalid | grep -c 127.0.0.11:53"
        );
        let client = docker.script(&["--network", "vmrt-test"], &script);
        let address = server.inspect("range .NetworkSettings.Networks}}{{.IPAddress}}{{end");
        assert_eq!((client.value("address"), client.value("page")), (address.clone(), "served".into()), "{client:?}");
        let octets: Vec<_> = client.value("stream").split_whitespace().map(str::to_string).collect();
        assert_eq!((octets.join("."), client.value("many")), (address, "8".into()), "{client:?}");
        assert_eq!(client.value("port"), "143", "port 53 is in use: {client:?}");
        let joining = format!("--network=container:{}", server.name);
        let beside = docker.script(&[&joining], "nslookup server | sed -n 's/^Address: //p' | tail -n 1");
        assert_eq!(beside.text(), client.value("address"), "{beside:?}");
        // Name resolution works after a restart of dockerd, too.
        docker.restart(|| ());
        assert!(server.exec("nslookup server").ok().text().contains("Name:"));
    }
    docker.call(&["network", "rm", "vmrt-test"]).ok();
}

/// The network also brings Docker's name server, which the container did not have before.
fn network_connect_and_disconnect_work_on_a_running_container() {
    let docker = Docker::new();
    docker.call(&["network", "create", "vmrt-test"]).ok();
    {
        let _server = docker.detached(&["--network", "vmrt-test", "--network-alias", "server"], SERVER);
        let client = docker.detached(&[], "exec sleep 1000");
        assert_eq!(client.exec("ls /sys/class/net").ok().text().lines().collect::<Vec<_>>(), ["eth0", "lo"]);
        for _ in 0..2 {
            client.call(&["network", "connect", "vmrt-test"], &[]).ok();
            let script = "timeout 20 wget -q -O - http://$(nslookup server | sed -n 's/^Address: //p' | tail -n 1)/";
            let page = eventually(TIMEOUT, || {
                let page = client.exec(script);
                (page.code == 0).then(|| page.text())
            });
            assert_eq!(page.as_deref(), Some("served"), "{:?}", client.exec("ip address; cat /etc/resolv.conf"));
            client.call(&["network", "disconnect", "vmrt-test"], &[]).ok();
            let removed = eventually(TIMEOUT, || (client.exec("test -e /sys/class/net/eth1").code != 0).then_some(()));
            assert!(removed.is_some(), "the interface still exists");
        }
    }
    docker.call(&["network", "rm", "vmrt-test"]).ok();
}

fn network_none_has_only_the_loopback_and_host_is_refused() {
    let docker = Docker::new();
    assert_eq!(docker.script(&["--network", "none"], "ls /sys/class/net").ok().text(), "lo");
    let done = docker.script(&["--network", "host"], "true");
    assert_eq!(done.code, 125);
    assert!(done.message().contains("the host's network is refused"), "{done:?}");
}
