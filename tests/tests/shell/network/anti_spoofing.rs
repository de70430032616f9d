//! `network.anti_spoofing`: a guest sends frames with other addresses than its interface's.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::process::Stdio;

use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Runtime, is_vmrt, new_id};
use vmrt_tests::{TIMEOUT, eventually};

use super::namespace::{Network, tool};

/// Sends a UDP packet to port 7002, or an ARP request, in an Ethernet frame of its own: KIND, destination and source hardware address,
/// destination and source address, text.
const SENDER: &str = r#"
import ipaddress, socket, struct, sys
kind, to_mac, from_mac, to, source, text = sys.argv[1:]
to_mac, from_mac = (bytes.fromhex(mac.replace(":", "")) for mac in (to_mac, from_mac))
to, source = (ipaddress.ip_address(address).packed for address in (to, source))

def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff

def udp():
    header = lambda check: struct.pack("!4H", 7003, 7002, 8 + len(text), check)
    data = text.encode()
    return header(checksum(source + to + struct.pack("!2H", 17, 8 + len(data)) + header(0) + data) or 0xffff) + data

def ipv4(payload):
    header = lambda check: struct.pack("!2B3H2BH", 0x45, 0, 20 + len(payload), 1, 0, 64, 17, check) + source + to
    return header(checksum(header(0))) + payload

if kind == "arp":
    payload, protocol = struct.pack("!2H2BH", 1, 0x0800, 6, 4, 1) + from_mac + source + bytes(6) + to, 0x0806
elif len(source) == 4:
    payload, protocol = ipv4(udp()), 0x0800
else:
    payload, protocol = struct.pack("!IH2B", 6 << 28, 8 + len(text), 17, 64) + source + to + udp(), 0x86dd
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(("eth0", 0))
link.send(to_mac + from_mac + struct.pack("!H", protocol) + payload)
"#;

const OTHER: &str = "02:99:00:00:00:77";

/// A guest in the network NUMBER that can send any frame, and the host's sockets.
struct Guest<'a> {
    number: u8,
    runtime: &'a Runtime,
    id: String,
    host_mac: String,
    sockets: [UdpSocket; 2],
}

impl<'a> Guest<'a> {
    fn start(number: u8, runtime: &'a Runtime, bundle: &Bundle, config: &str) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), config).expect("the configuration");
        let id = new_id();
        let mut command = runtime.command(&["--config"]);
        command.arg(file.path()).args(["run", "--detach", "--bundle"]).arg(bundle.path()).arg(&id);
        // The container keeps the streams of the command.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().expect("vmrt runs").success(), "the container starts");
        let bind = |address: String| {
            let socket = UdpSocket::bind(address).expect("the host listens");
            socket.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
            socket
        };
        let host_mac = std::fs::read_to_string(format!("/sys/class/net/vh{number}/address"));
        let host_mac = host_mac.expect("the host's interface");
        let sockets = [bind(format!("10.99.{number}.1:7002")), bind(format!("[fd99:{number}::1]:7002"))];
        Self { number, runtime, id, host_mac: host_mac.trim().to_owned(), sockets }
    }

    /// The hardware address of the guest's interface.
    fn own(&self) -> String {
        format!("02:99:00:00:00:{:02x}", self.number)
    }

    fn ipv4(&self, last: u8) -> String {
        format!("10.99.{}.{last}", self.number)
    }

    fn ipv6(&self, last: u8) -> String {
        format!("fd99:{}::{last}", self.number)
    }

    fn send(&self, kind: &str, hardware: &str, source: &str, text: &str) {
        let to = if source.contains(':') { self.ipv6(1) } else { self.ipv4(1) };
        let arguments = [kind, &self.host_mac, hardware, &to, source, text];
        let python = ["exec", &self.id, "python3", "-c", SENDER];
        self.runtime.call(&[&python[..], &arguments[..]].concat()).ok();
    }

    /// The texts that the host receives up to the packets that the guest may send, which follow the others.
    fn received(&self) -> BTreeSet<String> {
        self.send("udp", &self.own(), &self.ipv4(2), "end");
        self.send("udp", &self.own(), &self.ipv6(2), "end");
        let mut all = BTreeSet::new();
        for socket in &self.sockets {
            loop {
                let mut buffer = [0; 100];
                let length = socket.recv(&mut buffer).expect("a packet with the guest's own addresses arrives");
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if text == "end" {
                    break;
                }
                all.insert(text);
            }
        }
        all
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let deleted = self.runtime.call(&["delete", "--force", &self.id]);
        assert!(std::thread::panicking() || deleted.code == 0, "{deleted:?}");
    }
}

fn bundle(network: &Network) -> Bundle {
    network.join(Bundle::debian(["sleep", "1000"]))
}

/// Sends each kind of frame with an address that is not the guest's.
fn spoof(guest: &Guest<'_>) {
    guest.send("udp", &guest.own(), &guest.ipv4(77), "IPv4");
    guest.send("udp", OTHER, &guest.ipv4(2), "IPv4 with another MAC");
    guest.send("udp", &guest.own(), &guest.ipv6(77), "IPv6");
    guest.send("udp", OTHER, &guest.ipv6(2), "IPv6 with another MAC");
    guest.send("arp", &guest.own(), &guest.ipv4(78), "");
}

/// The host's neighbour that a spoofed ARP request makes it learn.
fn neighbour(guest: &Guest<'_>) -> String {
    tool(&format!("ip neighbour show {} dev vh{}", guest.ipv4(78), guest.number))
}

#[test]
fn a_guest_sends_with_any_address_by_default() {
    if !is_vmrt() {
        return;
    }
    let network = Network::new(30);
    let runtime = Runtime::new();
    let bundle = bundle(&network);
    let guest = Guest::start(30, &runtime, &bundle, "");
    spoof(&guest);
    assert_eq!(guest.received().len(), 4);
    assert!(
        eventually(TIMEOUT, || neighbour(&guest).contains(&guest.own()).then_some(())).is_some(),
        "{}",
        neighbour(&guest)
    );
}

#[test]
fn with_anti_spoofing_a_guest_sends_with_its_own_addresses_only() {
    if !is_vmrt() {
        return;
    }
    let network = Network::new(31);
    let runtime = Runtime::new();
    let before = network.inventory();
    let bundle = bundle(&network);
    let guest = Guest::start(31, &runtime, &bundle, "[network]\nanti_spoofing = true\n");
    spoof(&guest);
    assert_eq!(guest.received(), BTreeSet::new());
    assert_eq!(neighbour(&guest), "");
    let arrives = |text: &'static str| {
        guest.send("udp", &guest.own(), &guest.ipv4(3), text);
        guest.received().contains(text)
    };
    assert!(!arrives("not an address yet"));
    for _ in 0..3 {
        network.ip("address add 10.99.31.3/24 dev eth0");
        assert!(eventually(TIMEOUT, || arrives("a new address").then_some(())).is_some());
        spoof(&guest);
        assert_eq!(guest.received(), BTreeSet::new(), "after a change");
        network.ip("address delete 10.99.31.3/24 dev eth0");
        assert!(eventually(TIMEOUT, || (!arrives("an old address")).then_some(())).is_some());
    }
    drop(guest);
    assert_eq!(network.inventory(), before);
}
