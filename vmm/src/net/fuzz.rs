//! The fuzzing target of the device: any chains and frames, with a pair of sockets in place of the tap.

use std::os::fd::OwnedFd;

use event_manager::SubscriberOps;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use virtio_queue::DescriptorChain;

use super::chain::{Access, length, slices};
use super::handler::{Handler, RX, TX};
use super::header::{HEADER_LEN, MAX_FRAME};
use super::{SlotHandle, Tap, slot};
use crate::arch::Memory;
use crate::event_loop::EventLoop;
use crate::virtio::fuzz::{Input, RawDriver};

/// Features of any driver: all bits but that of mergeable receive buffers, which the input has.
const MERGEABLE: u64 = 1 << virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

/// Frames of both sides, and chains, in the order of the input.
pub(crate) fn net(data: &[u8]) {
    let mut input = Input::new(data);
    let options = input.u8();
    let mut driver = RawDriver::new(2);
    let (handle, slot) = slot(0).expect("an eventfd");
    let features = if options & 1 == 0 { MERGEABLE } else { 0 };
    let handler = Handler::new(driver.activation(features, options & 2 != 0), slot, options & 4 != 0);
    let mut event_loop = EventLoop::new().expect("an epoll descriptor");
    event_loop.add_subscriber(Box::new(handler));
    let mut peer = (options & 8 == 0).then(|| attach(&handle));
    while let Some(step) = input.step() {
        match step % 8 {
            0 => send_frame(&mut driver, &mut input),
            1 => drop(driver.add_chain(RX, &[], &[u32::from(input.u16())])),
            2 | 3 => driver.step(&mut input),
            4 => peer.iter().for_each(|peer| write_frame(peer, usize::from(step >> 3) << 6, &mut input)),
            5 => peer = (step & 0x80 == 0).then(|| attach(&handle)),
            _ => serve(&driver, &mut event_loop, peer.as_ref()),
        }
    }
    serve(&driver, &mut event_loop, peer.as_ref());
}

/// Attaches a tap and returns its other end.
fn attach(handle: &SlotHandle) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).expect("two descriptors");
    handle.attach(Tap::of_socket(ours)).expect("the handler lives");
    theirs
}

/// Adds a frame of the guest: a header of the input, then as many bytes as it says.
fn send_frame(driver: &mut RawDriver, input: &mut Input<'_>) {
    let length = usize::from(input.u16());
    let header: [u8; HEADER_LEN] = input.array();
    driver.add_chain(TX, &[&header, &vec![5; length]], &[]);
}

fn write_frame(peer: &OwnedFd, longer: usize, input: &mut Input<'_>) {
    let mut frame = vec![0; HEADER_LEN + longer];
    frame.extend(input.bytes(4));
    // The device does not read at the moment if the socket is full.
    let _ = rustix::io::write(peer, &frame);
}

/// Serves both queues. What arrives at the host is a frame.
fn serve(driver: &RawDriver, event_loop: &mut EventLoop, peer: Option<&OwnedFd>) {
    driver.notify(TX);
    driver.notify(RX);
    event_loop.run_with_timeout(0).expect("the handler's events are valid");
    let mut frame = vec![0; MAX_FRAME + 1];
    while let Some(Ok(length @ 1..)) = peer.map(|peer| rustix::io::read(peer, &mut frame)) {
        assert!((HEADER_LEN + 1..=MAX_FRAME).contains(&length), "a frame of {length} bytes");
    }
}

/// A chain whose memory the device uses has only descriptors of one direction, and their whole length.
pub(crate) fn chain<'m>(chain: &DescriptorChain<&'m Memory>, memory: &'m Memory) {
    for access in [Access::Read, Access::Write] {
        let Some(found) = slices(&mut chain.clone(), memory, access) else { continue };
        let total: u64 = chain.clone().map(|descriptor| u64::from(descriptor.len())).sum();
        assert_eq!(length(&found) as u64, total);
        assert!(chain.clone().all(|descriptor| descriptor.is_write_only() == (access == Access::Write)));
    }
}
