//! The secret that a connection begins with.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::MAX_PENDING;
use super::*;

fn ops(packets: &[(Header, Vec<u8>)]) -> Vec<u16> {
    packets.iter().map(|(header, _)| header.op).collect()
}

fn secret(driver: &Driver) -> Vec<u8> {
    driver.ports.secret().bytes().to_vec()
}

/// The header of a packet from `guest_port`.
fn from(guest_port: u32, port: u32, op: u16) -> Header {
    Header { src_port: guest_port, ..Header::new(port, op) }
}

#[test]
fn two_machines_have_different_secrets() {
    let (one, other) = (Ports::new().unwrap(), Ports::new().unwrap());
    assert!(!one.secret().matches(other.secret().bytes()));
}

#[test]
fn a_pending_connection_gets_no_data_and_its_data_goes_nowhere() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(b"for the agent").unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut driver = Driver::new();
    let (port, flow) = driver.ports.listen(bridge(Some(ours.try_clone().unwrap()), Some(ours)));
    assert_eq!(ops(&driver.exchange(Header::new(port, OP_REQUEST), b"")), [OP_RESPONSE]);
    let secret = secret(&driver);
    assert!(driver.exchange(Header::new(port, OP_RW), &secret[..15]).is_empty());
    driver.host_events();
    assert!(driver.receive().is_empty());
    assert!(theirs.read(&mut [0; 1]).is_err() && flow.is_drained());
    let answer = driver.exchange(Header::new(port, OP_RW), &[&secret[15..], b"first data"].concat());
    assert_eq!(answer[0].1, b"for the agent");
    let mut got = [0; 10];
    theirs.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"first data");
}

#[test]
fn the_secret_may_be_split_at_any_byte() {
    for size in 1..=16 {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut driver = Driver::new();
        let (port, _) = driver.ports.listen(bridge(NONE, Some(writer)));
        driver.exchange(Header::new(port, OP_REQUEST), b"");
        for part in [secret(&driver), b"data".to_vec()].concat().chunks(size) {
            assert!(driver.exchange(Header::new(port, OP_RW), part).is_empty());
        }
        let mut got = [0; 4];
        reader.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"data", "parts of {size} bytes");
    }
}

#[test]
fn a_wrong_secret_is_a_reset_and_does_not_use_up_the_port() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut driver = Driver::new();
    let (port, _) = driver.ports.listen(bridge(NONE, Some(writer)));
    let right = secret(&driver);
    for wrong in [vec![0; 16], vec![0; 40_000], [&right[..15], &[!right[15]]].concat(), [&[0], &right[..]].concat()] {
        assert_eq!(ops(&driver.exchange(Header::new(port, OP_REQUEST), b"")), [OP_RESPONSE]);
        assert_eq!(ops(&driver.exchange(Header::new(port, OP_RW), &wrong)), [OP_RST]);
        assert_eq!(driver.backend().sizes(), (0, 0, 0));
    }
    assert_eq!(ops(&driver.connect(Header::new(port, OP_REQUEST))), [OP_RESPONSE]);
    driver.exchange(Header::new(port, OP_RW), b"data");
    driver.exchange(Header { flags: SHUTDOWN_SEND, ..Header::new(port, OP_SHUTDOWN) }, b"");
    let mut got = String::new();
    reader.read_to_string(&mut got).unwrap();
    assert_eq!(got, "data");
}

#[test]
fn of_two_pending_connections_the_one_with_the_secret_gets_the_port() {
    let mut driver = Driver::new();
    let (port, _) = driver.ports.listen(bridge(NONE, NONE));
    assert_eq!(ops(&driver.exchange(from(10, port, OP_REQUEST), b"")), [OP_RESPONSE]);
    assert_eq!(ops(&driver.connect(from(11, port, OP_REQUEST))), [OP_RESPONSE]);
    let secret = secret(&driver);
    let late = driver.exchange(from(10, port, OP_RW), &secret);
    assert_eq!((ops(&late), late[0].0.dst_port), (vec![OP_RST], 10), "the port is used up");
    assert_eq!(driver.backend().sizes().0, 1);
}

#[test]
fn a_service_is_connected_to_when_the_secret_is_complete() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let mut driver = Driver::new();
    let port = driver.ports.serve(Box::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(UnixStream::pair()?.0.into())
    }));
    assert_eq!(ops(&driver.exchange(Header::new(port, OP_REQUEST), b"")), [OP_RESPONSE]);
    assert_eq!(ops(&driver.exchange(Header::new(port, OP_RW), &[0; 16])), [OP_RST]);
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    driver.connect(Header::new(port, OP_REQUEST));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[test]
fn a_service_that_refuses_is_a_reset() {
    let mut driver = Driver::new();
    let port = driver.ports.serve(Box::new(|| Err(std::io::ErrorKind::ConnectionRefused.into())));
    assert_eq!(ops(&driver.connect(Header::new(port, OP_REQUEST))), [OP_RESPONSE, OP_RST]);
    assert_eq!(driver.backend().sizes(), (0, 0, 0));
}

#[test]
fn a_port_that_closes_before_the_secret_is_complete_is_a_reset() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut driver = Driver::new();
    let (port, flow) = driver.ports.listen(bridge(NONE, Some(writer)));
    driver.exchange(Header::new(port, OP_REQUEST), b"");
    driver.ports.close(port);
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0, "a pending connection does not keep descriptors open");
    let secret = secret(&driver);
    assert_eq!(ops(&driver.exchange(Header::new(port, OP_RW), &secret)), [OP_RST]);
    assert!(flow.is_drained(), "a stream without a connection has no data");
}

#[test]
fn more_pending_connections_take_the_place_of_the_oldest() {
    let mut driver = Driver::new();
    let (port, _) = driver.ports.listen(bridge(NONE, NONE));
    let limit = u32::try_from(MAX_PENDING).unwrap();
    for guest_port in 0..limit {
        assert_eq!(ops(&driver.exchange(from(guest_port, port, OP_REQUEST), b"")), [OP_RESPONSE]);
    }
    let answer = driver.exchange(from(limit, port, OP_REQUEST), b"");
    assert_eq!(ops(&answer), [OP_RST, OP_RESPONSE]);
    assert_eq!((answer[0].0.dst_port, answer[1].0.dst_port), (0, limit));
    assert_eq!(driver.backend().sizes().0, MAX_PENDING);
    let secret = secret(&driver);
    assert!(driver.exchange(from(limit, port, OP_RW), &secret).is_empty(), "the newest one can show the secret");
    // The connection is no longer pending: there is a place for one more.
    driver.ports.listen_on(port, bridge(NONE, NONE));
    assert_eq!(ops(&driver.exchange(from(limit + 1, port, OP_REQUEST), b"")), [OP_RESPONSE]);
}

#[test]
fn a_guest_that_ends_a_pending_connection_leaves_no_state() {
    let mut driver = Driver::without_buffers(false);
    let (port, _) = driver.ports.listen(bridge(NONE, NONE));
    for guest_port in 0..10_000 {
        driver.send(from(guest_port, port, OP_REQUEST), b"");
        driver.send(from(guest_port, port, OP_RST), b"");
        driver.serve();
        driver.take_transmitted();
    }
    assert_eq!(driver.backend().sizes(), (0, 0, 0));
    driver.add_receive_buffers(super::driver::QUEUE_SIZE);
    assert_eq!(ops(&driver.connect(Header::new(port, OP_REQUEST))), [OP_RESPONSE]);
}

#[test]
fn a_guest_that_receives_no_more_gets_nothing_after_the_secret() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(b"for nobody").unwrap();
    let mut driver = Driver::new();
    let (port, _) = driver.ports.listen(bridge(Some(ours.try_clone().unwrap()), Some(ours)));
    driver.exchange(Header::new(port, OP_REQUEST), b"");
    driver.exchange(Header { flags: SHUTDOWN_RECEIVE, ..Header::new(port, OP_SHUTDOWN) }, b"");
    let secret = secret(&driver);
    assert!(driver.exchange(Header::new(port, OP_RW), &[&secret, &b"data"[..]].concat()).is_empty());
    let mut got = [0; 4];
    theirs.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"data");
}

#[test]
fn the_control_port_needs_no_secret_and_takes_one_connection() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut driver = Driver::new();
    driver.ports.listen_on(agent::CONTROL_PORT, bridge(NONE, Some(writer)));
    let request = Header::new(agent::CONTROL_PORT, OP_REQUEST);
    assert_eq!(ops(&driver.exchange(request, b"")), [OP_RESPONSE]);
    driver.exchange(Header { op: OP_RW, ..request }, b"hello");
    let mut got = [0; 5];
    reader.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    assert_eq!(ops(&driver.exchange(Header { src_port: 10, ..request }, b"")), [OP_RST]);
}
