//! The fuzzing target of the device: any packets and chains of a guest, with live descriptors of the host.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use event_manager::SubscriberOps;
use virtio_queue::DescriptorChain;
use virtio_vsock::packet::PKT_HEADER_SIZE;

use super::backend::Backend;
use super::handler::{Handler, RX, TX};
use super::header::{OP_REQUEST, TYPE_STREAM};
use super::packet::GuestPacket;
use super::{Bridge, GUEST_CID, HOST_CID, MAX_PAYLOAD, Ports};
use crate::arch::Memory;
use crate::event_loop::EventLoop;
use crate::virtio::fuzz::{Input, RawDriver};

/// The first port that [`Ports`] assigns.
const FIRST_PORT: u32 = agent::CONTROL_PORT + 1;

/// The ports that packets are sent to: those of [`Host`], one that nothing listens on, and the control port.
const PORTS: u32 = 8;

/// Receive buffers in bytes, the sizes of Linux's buffer and of the shortest one.
const BUFFERS: [u32; 4] = [4096, 44, 45, 16 << 10];

/// The host's ends of the streams.
struct Host {
    ports: Ports,
    peers: Arc<Mutex<Vec<UnixStream>>>,
    /// Whether the service's port was connected to.
    served: Arc<AtomicBool>,
}

/// Packets, host events and chains in the order of the input. The guest knows the secret, but no other packets than
/// those of one kind of step have it.
pub(crate) fn vsock(data: &[u8]) {
    let _ = run(data);
}

/// Returns whether a connection that needs the secret was bridged.
fn run(data: &[u8]) -> bool {
    let mut input = Input::new(data);
    let options = input.u8();
    let mut driver = RawDriver::new(3);
    let ports = Ports::new().expect("an eventfd");
    let host = Host::listen(&ports);
    let (secret, mut secret_sent) = (*ports.secret().bytes(), false);
    let backend = Backend::new(ports).expect("an epoll descriptor");
    let handler = Handler::new(driver.activation(0, options & 1 != 0), backend, options & 2 != 0);
    let mut event_loop = EventLoop::new().expect("an epoll descriptor");
    event_loop.add_subscriber(Box::new(handler));
    while let Some(step) = input.step() {
        match step % 8 {
            0..=2 => send_packet(&mut driver, &mut input, &[]),
            3 => drop(driver.add_chain(RX, &[], &[BUFFERS[usize::from(step >> 6)]])),
            4 => host.act(step >> 3, &mut input),
            5 => driver.step(&mut input),
            6 => serve(&mut driver, &mut event_loop),
            _ => {
                secret_sent = true;
                send_packet(&mut driver, &mut input, &secret[usize::from(step >> 4)..]);
            }
        }
    }
    serve(&mut driver, &mut event_loop);
    let bridged = host.has_bridged();
    assert!(secret_sent || !bridged, "a connection was bridged without the secret");
    bridged
}

fn serve(driver: &mut RawDriver, event_loop: &mut EventLoop) {
    driver.notify(TX);
    event_loop.run_with_timeout(0).expect("the handler's events are valid");
}

/// Adds a packet that is valid unless the input says otherwise. Its payload starts with as much of `start` as fits.
fn send_packet(driver: &mut RawDriver, input: &mut Input<'_>, start: &[u8]) {
    let [op, port, flags, wrong] = input.array();
    let length = if op & 0x80 == 0 { 0 } else { u32::from(input.u16()) };
    let credit = if op & 0x40 == 0 { [64 << 10, 0] } else { [input.u32(), input.u32()] };
    let (low, high) = (|cid: u64| u32::try_from(cid).expect("low"), u32::from(wrong & 1));
    let kind = TYPE_STREAM + u16::from(wrong >> 1 & 1);
    let claimed = if wrong & 4 == 0 { length } else { input.u32() };
    let mut header = Vec::with_capacity(PKT_HEADER_SIZE);
    for field in [low(GUEST_CID), high, low(HOST_CID), u32::from(wrong >> 3 & 1)] {
        header.extend(field.to_le_bytes());
    }
    header.extend((9 + u32::from(port >> 3)).to_le_bytes());
    header.extend((agent::CONTROL_PORT + (u32::from(port) + 1) % PORTS).to_le_bytes());
    header.extend(claimed.to_le_bytes());
    header.extend(kind.to_le_bytes());
    header.extend((OP_REQUEST + u16::from(op & 0x3f) % 8).to_le_bytes());
    header.extend(u32::from(flags).to_le_bytes());
    credit.iter().for_each(|field| header.extend(field.to_le_bytes()));
    header.extend(&start[..start.len().min(length as usize)]);
    header.resize(PKT_HEADER_SIZE + length as usize, op);
    let cut = usize::from(wrong >> 4) * 8;
    let (front, back) = header.split_at(cut.min(header.len()));
    driver.add_chain(TX, &[front, back], &[]);
}

impl Host {
    /// Listens for connections of each kind: to a socket, from a pipe, to a pipe, to files that never block, to
    /// nothing, to a service. The socket of the control port is the last one that is made here.
    fn listen(ports: &Ports) -> Self {
        let mut peers = Vec::new();
        let mut end = || -> OwnedFd {
            let (ours, theirs) = UnixStream::pair().expect("two descriptors");
            theirs.set_nonblocking(true).expect("a socket");
            peers.push(theirs);
            ours.into()
        };
        let socket = end();
        let both = (socket.try_clone().expect("a descriptor"), socket);
        let null =
            || -> OwnedFd { std::fs::File::options().read(true).write(true).open("/dev/null").expect("it").into() };
        let (reader, writer) = std::io::pipe().expect("two descriptors");
        let bridges = [
            Bridge::new(Some(both.0), Some(both.1)),
            Bridge::new(Some(end()), Some(writer.into())),
            Bridge::new(Some(reader.into()), Some(end())),
            Bridge::new(Some(null()), Some(null())),
            Bridge::new(None, None),
        ];
        for bridge in bridges {
            let _ = ports.listen(bridge);
        }
        let control = end();
        let both = (control.try_clone().expect("a descriptor"), control);
        let _ = ports.listen_on(agent::CONTROL_PORT, Bridge::new(Some(both.0), Some(both.1)));
        let (peers, served) = (Arc::new(Mutex::new(peers)), Arc::new(AtomicBool::new(false)));
        let (added, connected) = (Arc::clone(&peers), Arc::clone(&served));
        let _ = ports.serve(Box::new(move || {
            connected.store(true, Ordering::Relaxed);
            let (ours, theirs) = UnixStream::pair()?;
            theirs.set_nonblocking(true)?;
            added.lock().expect("no panic before").push(theirs);
            Ok(ours.into())
        }));
        Self { ports: ports.clone(), peers, served }
    }

    /// Whether a port was used up, except for the control port, or the service's port was connected to.
    fn has_bridged(&self) -> bool {
        let used_up = |port: u32| !self.ports.is_open(FIRST_PORT + port);
        (0..5).any(used_up) || self.served.load(Ordering::Relaxed)
    }

    /// Writes to a peer, reads from it, or closes it.
    fn act(&self, kind: u8, input: &mut Input<'_>) {
        let [peer, amount] = input.array::<2>().map(usize::from);
        let mut peers = self.peers.lock().expect("no panic before");
        if peers.is_empty() {
            return;
        }
        let peer = peer % peers.len();
        // Each may fail or do a part of the work, as the device has closed its end or not served it.
        match kind % 4 {
            0 => drop(peers[peer].write(&vec![7; amount << 8])),
            1 => drop(peers[peer].read(&mut vec![0; (amount + 1) << 10])),
            2 => drop(peers.swap_remove(peer)),
            _ => drop(peers[peer].shutdown(std::net::Shutdown::Write)),
        }
    }
}

/// A chain that is a packet has its whole payload.
pub(crate) fn packet<'m>(chain: &DescriptorChain<&'m Memory>, memory: &'m Memory) {
    if let Ok(packet) = GuestPacket::parse(memory, &mut chain.clone()) {
        assert!(packet.len() <= MAX_PAYLOAD);
        let payload: usize = packet.payload().iter().map(vm_memory::VolatileSlice::len).sum();
        assert_eq!(payload, packet.len() as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_inputs_reach_connections_with_and_without_the_secret() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/vsock");
        let paths = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let bridged: Vec<_> = paths.map(|path| run(&std::fs::read(path).unwrap())).collect();
        assert!(bridged.contains(&true) && bridged.contains(&false));
    }

    #[test]
    fn the_secret_is_what_bridges_a_connection() {
        let request = [0, 3, 3, 0, 0, 0, 0, 0];
        let data = |step: u8, length: u8| [step, 0x84, 0, 0, 0, length, 0];
        for (packets, bridged) in [
            (vec![], false),
            (vec![data(0, 16)], false),
            (vec![data(7, 15)], false),
            (vec![data(7, 16)], true),
            (vec![data(7, 200)], true),
            (vec![data(7, 8), data(0x87, 8)], true),
            (vec![data(7, 8), data(0x77, 8)], false),
        ] {
            assert_eq!(run(&[&request[..], &packets.concat()].concat()), bridged, "{packets:?}");
        }
    }
}
