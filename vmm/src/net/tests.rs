//! Tests of the device with valid and invalid requests. A pair of SEQPACKET sockets stands for the tap.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::handler::{RX, TX};
use super::header::{HEADER_LEN, MAX_FRAME};
use super::*;
use crate::event_loop::LoopHandle;
use crate::virtio::testing::rewriting::{Chain, rewrite_while_read};
use crate::virtio::testing::{Driver, LoopThread, PLUGGED, UNPLUGGED, life_cycle};

/// The other end of the tap, where the guest's frames come out.
struct TapPeer(OwnedFd);

impl TapPeer {
    fn send(&self, frame: &[u8]) {
        assert_eq!(rustix::io::write(&self.0, frame).unwrap(), frame.len());
    }

    fn receive(&self) -> Vec<u8> {
        let mut frame = vec![0; MAX_FRAME + 1];
        let length = rustix::io::read(&self.0, &mut frame).unwrap();
        frame.truncate(length);
        frame
    }

    fn is_silent(&self) -> bool {
        rustix::io::ioctl_fionbio(&self.0, true).unwrap();
        let silent = rustix::io::read(&self.0, &mut [0; 1]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        rustix::io::ioctl_fionbio(&self.0, false).unwrap();
        silent
    }
}

fn tap() -> (Tap, TapPeer) {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    (Tap::of_socket(ours), TapPeer(theirs))
}

fn device(event_loop: &LoopHandle, state: Option<NetState>) -> (Driver<Net>, SlotHandle) {
    let (handle, slot) = slot(3).unwrap();
    (Driver::new(Net::new(slot, event_loop.clone(), state)), handle)
}

/// An active driver of a device with a tap, and the tap's other end.
fn connected(event_loop: &LoopThread) -> (Driver<Net>, TapPeer) {
    let (mut driver, handle) = device(&event_loop.handle(), None);
    let (tap, peer) = tap();
    handle.attach(tap).unwrap();
    driver.set_up();
    await_link(&driver, 1);
    (driver, peer)
}

/// A frame of `length` bytes after a header of zeros.
fn frame(length: usize, byte: u8) -> Vec<u8> {
    [vec![0; HEADER_LEN], vec![byte; length]].concat()
}

fn status(driver: &Driver<Net>) -> u32 {
    driver.register(0x104) >> 16
}

/// Waits until the driver is notified that the link's state is `wanted`.
fn await_link(driver: &Driver<Net>, wanted: u32) {
    let reached = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        status(driver) == wanted && driver.register(0x60) & 2 != 0
    });
    assert!(reached, "the link is {}, not {wanted}", status(driver));
}

#[test]
fn the_device_passes_the_life_cycle_test() {
    let event_loop = LoopThread::start();
    let peer = RefCell::new(None);
    let make = |state| {
        let (handle, slot) = slot(0).unwrap();
        let (tap, other) = tap();
        handle.attach(tap).unwrap();
        peer.replace(Some(other));
        Net::new(slot, event_loop.handle(), state)
    };
    life_cycle(make, |driver| {
        let peer = peer.borrow();
        let peer = peer.as_ref().unwrap();
        driver.make_available(RX, &[], &[2000]);
        driver.notify(RX);
        peer.send(&frame(60, 7));
        let used = driver.wait_used(RX);
        assert_eq!((used.data.len(), used.data[10], used.data[12]), (72, 1, 7));
        driver.request(TX, &[&frame(100, 9)], &[]);
        assert_eq!(peer.receive(), frame(100, 9));
    });
}

#[test]
fn the_link_is_down_until_a_tap_is_attached() {
    let event_loop = LoopThread::start();
    let (mut driver, handle) = device(&event_loop.handle(), None);
    driver.set_up();
    let words = [0x100, 0x104].map(|offset| driver.register(offset).to_le_bytes());
    assert_eq!((&words.concat()[..6], status(&driver)), (&agent::slot_address(3)[..], 0));
    driver.request(TX, &[&frame(60, 1)], &[]);
    assert_eq!(driver.register(0x60) & 2, 0);
    let (tap, peer) = tap();
    handle.attach(tap).unwrap();
    await_link(&driver, 1);
    assert_eq!(driver.register(0x60) & 2, 2, "a configuration change");
    assert!(peer.is_silent(), "an earlier frame reached the tap");
    driver.request(TX, &[&frame(60, 2)], &[]);
    assert_eq!(peer.receive(), frame(60, 2));
}

#[test]
fn a_restored_driver_gets_a_configuration_change() {
    let event_loop = LoopThread::start();
    let (mut driver, _handle) = device(&event_loop.handle(), Some(NetState {}));
    driver.set_up();
    assert!(driver.interrupted());
    assert_eq!((driver.register(0x60), status(&driver)), (3, 0));
}

#[test]
fn a_long_frame_waits_for_enough_buffers_and_fills_them_at_once() {
    let event_loop = LoopThread::start();
    let (mut driver, peer) = connected(&event_loop);
    let heads = [driver.make_available(RX, &[], &[1000]), driver.make_available(RX, &[], &[500, 500])];
    driver.notify(RX);
    peer.send(&frame(2500, 5));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(driver.take_used(RX), None, "a part of a frame was delivered");
    let last = driver.make_available(RX, &[], &[4000]);
    driver.notify(RX);
    let used = [driver.wait_used(RX), driver.take_used(RX).unwrap(), driver.take_used(RX).unwrap()];
    assert_eq!(used.each_ref().map(|used| used.head), [heads[0], heads[1], last]);
    assert_eq!(used.each_ref().map(|used| used.data.len()), [1000, 1000, 512]);
    assert_eq!(used[0].data[10..12], 3_u16.to_le_bytes());
    assert!(used[2].data.iter().all(|byte| *byte == 5));
}

#[test]
fn invalid_transmit_chains_are_used_and_the_next_frame_is_sent() {
    let event_loop = LoopThread::start();
    let (mut driver, peer) = connected(&event_loop);
    driver.request(TX, &[], &[100]);
    driver.request(TX, &[&[0; HEADER_LEN]], &[]);
    driver.request(TX, &[&frame(60, 1)], &[10]);
    driver.request(TX, &[&vec![0; MAX_FRAME + 1]], &[]);
    let outside = driver.make_available_at(TX, u64::MAX - 10, 64);
    driver.notify(TX);
    assert_eq!(driver.wait_used(TX).head, outside);
    assert!(peer.is_silent());
    driver.request(TX, &[&frame(60, 2)], &[]);
    assert_eq!(peer.receive(), frame(60, 2));
}

#[test]
fn chains_with_unplugged_memory_are_used_without_a_frame() {
    let event_loop = LoopThread::start();
    let (mut driver, peer) = connected(&event_loop);
    for address in [UNPLUGGED, UNPLUGGED - 20] {
        let head = driver.make_available(TX, &[&frame(60, 1)], &[]);
        driver.move_buffer(TX, head, 0, address);
        driver.notify(TX);
        assert_eq!(driver.wait_used(TX).head, head);
        assert!(peer.is_silent(), "a frame was sent from {address:#x}");
        let head = driver.make_available_at(RX, address, 2000);
        driver.make_available(RX, &[], &[2000]);
        driver.notify(RX);
        peer.send(&frame(60, 4));
        assert_eq!(driver.take_used_element(RX), (head, 0), "a frame was received at {address:#x}");
        assert_eq!(driver.wait_used(RX).data.len(), 72);
    }
    let head = driver.make_available_at(RX, PLUGGED, 2000);
    driver.notify(RX);
    peer.send(&frame(60, 5));
    assert_eq!(driver.take_used_element(RX), (head, 72));
}

#[test]
fn invalid_receive_buffers_drop_only_one_frame() {
    let event_loop = LoopThread::start();
    let (mut driver, peer) = connected(&event_loop);
    let outside = driver.make_available_at(RX, 1 << 60, 2000);
    driver.make_available(RX, &[b"readable"], &[]);
    driver.make_available(RX, &[], &[2000]);
    driver.notify(RX);
    peer.send(&frame(60, 4));
    let first = driver.take_used_element(RX);
    assert_eq!((first.0, first.1), (outside, 0));
    assert_eq!(driver.wait_used(RX).data.len(), 0);
    assert_eq!(driver.wait_used(RX).data.len(), 72);
    for _ in 0..256 {
        driver.make_available(RX, &[], &[0]);
    }
    driver.notify(RX);
    peer.send(&frame(60, 5));
    for _ in 0..256 {
        assert_eq!(driver.wait_used(RX).data.len(), 0, "the frame is dropped");
    }
    driver.make_available(RX, &[], &[100]);
    driver.notify(RX);
    peer.send(&frame(60, 6));
    assert_eq!(driver.wait_used(RX).data[12], 6);
}

#[test]
fn the_slot_of_a_deleted_tap_is_free_again() {
    let event_loop = LoopThread::start();
    let (handle, slot) = slot(0).unwrap();
    let slots = Slots::new(vec![handle]);
    let mut driver = Driver::new(Net::new(slot, event_loop.handle(), None));
    driver.set_up();
    let (first, peer) = tap();
    assert_eq!(slots.attach(first).unwrap(), 0);
    await_link(&driver, 1);
    assert_eq!(
        slots.attach(tap().0).unwrap_err().to_string(),
        "the machine has 1 network devices, and every one is in use"
    );
    drop(peer);
    await_link(&driver, 0);
    let (second, peer) = tap();
    slots.attach(second).unwrap();
    await_link(&driver, 1);
    driver.request(TX, &[&frame(60, 3)], &[]);
    assert_eq!(peer.receive(), frame(60, 3));
}

#[test]
fn chains_that_change_while_they_are_read_do_no_harm() {
    let event_loop = LoopThread::start();
    let (mut driver, handle) = device(&event_loop.handle(), None);
    let (tap, peer) = tap();
    handle.attach(tap).unwrap();
    rustix::io::ioctl_fionbio(&peer.0, true).unwrap();
    let sent = frame(60, 1);
    let chains = [
        Chain { queue: RX, readable: &[], writable: &[500, 1500] },
        Chain { queue: TX, readable: &[&sent], writable: &[] },
        Chain { queue: TX, readable: &[&sent[..HEADER_LEN], &sent[HEADER_LEN..]], writable: &[] },
    ];
    let mut received = 0;
    let used = rewrite_while_read(&mut driver, &chains, &[0, 1, u64::MAX], || {
        // The socket may be full, which is not of interest.
        let _ = rustix::io::write(&peer.0, &sent);
        let mut buffer = vec![0; MAX_FRAME + 1];
        while let Ok(length) = rustix::io::read(&peer.0, &mut buffer) {
            assert!((HEADER_LEN..=MAX_FRAME).contains(&length), "a frame of {length} bytes");
            received += 1;
        }
    });
    assert!(used > 100 && received > 10, "{used} chains were used, {received} frames were sent");
    while rustix::io::read(&peer.0, &mut vec![0; MAX_FRAME]).is_ok() {}
    driver.set_up();
    driver.request(TX, &[&frame(100, 9)], &[]);
    rustix::io::ioctl_fionbio(&peer.0, false).unwrap();
    assert_eq!(peer.receive(), frame(100, 9));
}
