//! A guest that violates the protocol (rows 7 and 9 of the first list in the threat model).

use vm_memory::{Bytes, GuestAddress};

use super::driver::{Descriptor, QUEUE_SIZE};
use super::*;
use crate::virtio::testing::{PLUGGED, UNPLUGGED};

fn ops(packets: &[(Header, Vec<u8>)]) -> Vec<u16> {
    packets.iter().map(|(header, _)| header.op).collect()
}

#[test]
fn packets_to_unknown_ports_or_addresses_are_reset() {
    let mut driver = Driver::new();
    let (port, _) = driver.ports.listen(bridge(NONE, NONE));
    let wrong = [
        Header::new(port + 1, OP_REQUEST),
        Header { src_cid: [4, 0], ..Header::new(port, OP_REQUEST) },
        Header { dst_cid: [2, 1], ..Header::new(port, OP_REQUEST) },
        Header { kind: 2, ..Header::new(port, OP_REQUEST) },
        Header::new(port, OP_RW),
        Header::new(port, 77),
    ];
    for header in wrong {
        let answer = driver.exchange(header, b"x");
        assert_eq!(ops(&answer), [OP_RST], "{header:?}");
        assert_eq!(answer[0].0.dst_port, 9);
    }
    assert!(driver.exchange(Header::new(port + 1, OP_RST), b"").is_empty(), "a reset is never answered");
    assert_eq!(
        ops(&driver.exchange(Header::new(port, OP_REQUEST), b"")),
        [OP_RESPONSE],
        "the port still accepts a connection"
    );
}

#[test]
fn a_port_accepts_one_connection() {
    let (mut driver, port, _) = connected(bridge(NONE, NONE));
    let other = Header { src_port: 10, ..Header::new(port, OP_REQUEST) };
    assert_eq!(ops(&driver.exchange(other, b"")), [OP_RST]);
    assert_eq!(
        ops(&driver.exchange(Header::new(port, OP_REQUEST), b"")),
        [OP_RST],
        "a second request resets the connection"
    );
    assert_eq!(
        ops(&driver.exchange(Header::new(port, OP_REQUEST), b"")),
        [OP_RST],
        "the port accepts no new connection"
    );
}

#[test]
fn a_hundred_thousand_connects_and_resets_leave_no_state() {
    let mut driver = Driver::new();
    let mut answered = 0;
    for round in 0..100_000 {
        let op = if round % 2 == 0 { OP_REQUEST } else { OP_RST };
        let header = Header { src_port: round, ..Header::new(2000 + round % 7, op) };
        answered += driver.exchange(header, b"").len();
    }
    assert_eq!(answered, 50_000);
    assert_eq!(driver.backend().sizes(), (0, 0, 0));
}

#[test]
fn the_transmit_queue_stalls_while_the_guest_takes_no_resets() {
    let mut driver = Driver::without_buffers(false);
    for _ in 0..100 {
        for _ in 0..QUEUE_SIZE / 4 {
            driver.send(Header::new(5, OP_REQUEST), b"");
        }
        driver.serve();
        if driver.take_transmitted() == 0 {
            break;
        }
    }
    let (_, resets, _) = driver.backend().sizes();
    assert_eq!(resets, 256, "the bound of pending resets");
    driver.add_receive_buffers(QUEUE_SIZE);
    driver.serve();
    assert!(driver.take_transmitted() > 0, "the transmit queue is served again");
}

#[test]
fn data_beyond_the_credit_resets_the_connection() {
    let (reader, writer) = std::io::pipe().unwrap();
    let (mut driver, port, flow) = connected(bridge(NONE, Some(writer)));
    let data = vec![1; 64 << 10];
    let mut answers = Vec::new();
    // Nothing reads from the pipe. The pipe takes 64 KiB, and the device 256 KiB.
    for _ in 0..6 {
        answers.extend(driver.exchange(Header::new(port, OP_RW), &data));
    }
    assert_eq!(ops(&answers).last(), Some(&OP_RST), "{answers:?}");
    assert!(!flow.is_drained(), "data within the credit is still written");
    drop(reader);
    driver.host_events();
    assert!(flow.is_drained());
    assert_eq!(driver.backend().sizes(), (0, 0, 0));
}

#[test]
fn a_guest_that_takes_no_credit_updates_can_send_more_than_the_buffer() {
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
    let mut driver = Driver::without_buffers(false);
    let (port, flow) = driver.ports.listen(bridge(NONE, Some(null)));
    assert!(driver.connect(Header::new(port, OP_REQUEST)).is_empty());
    for _ in 0..3 * super::super::BUFFER_SIZE / (64 << 10) {
        driver.exchange(Header::new(port, OP_RW), &vec![1; 64 << 10]);
    }
    assert!(flow.is_drained());
    driver.add_receive_buffers(QUEUE_SIZE);
    driver.serve();
    let answers = driver.receive();
    assert_eq!(ops(&answers), [OP_RESPONSE], "it carries the credit");
    assert_eq!(answers[0].0.fwd_cnt, 16 + 3 * super::super::BUFFER_SIZE);
}

#[test]
fn false_credit_only_stops_the_device_from_sending() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut writer, b"input").unwrap();
    let mut driver = Driver::new();
    let (port, _) = driver.ports.listen(bridge(Some(reader), NONE));
    // The guest claims to have forwarded a byte that it never received.
    let false_credit = Header { fwd_cnt: 1, buf_alloc: 4096, ..Header::new(port, OP_REQUEST) };
    assert_eq!(ops(&driver.connect(false_credit)), [OP_RESPONSE]);
    let true_credit = Header { buf_alloc: 3, ..Header::new(port, OP_CREDIT_UPDATE) };
    let answer = driver.exchange(true_credit, b"");
    assert_eq!(answer[0].1, b"inp", "never more than the guest's credit");
    let shrunk = Header { buf_alloc: 0, fwd_cnt: u32::MAX, ..Header::new(port, OP_CREDIT_UPDATE) };
    assert!(driver.exchange(shrunk, b"").is_empty());
}

/// A driver with `count` receive buffers without space for data. The first is used by the response to a connection
/// whose host has data to send. Returns the port.
fn connected_without_space(count: u16) -> (Driver, u32) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut writer, b"input").unwrap();
    let mut driver = Driver::without_buffers(false);
    let (port, _) = driver.ports.listen(bridge(Some(reader), NONE));
    (0..count).for_each(|buffer| driver.add_receive_buffer_without_space(2 * buffer));
    connect_and_keep_buffers(&mut driver, Header::new(port, OP_REQUEST));
    (driver, port)
}

/// Connects, but does not take the used receive buffers, which would be added again with space for data.
fn connect_and_keep_buffers(driver: &mut Driver, request: Header) {
    let secret = driver.ports.secret();
    driver.send(request, b"");
    driver.send(Header { op: OP_RW, ..request }, secret.bytes());
    driver.serve();
}

#[test]
fn a_receive_buffer_without_space_for_data_is_kept_for_a_packet_without_data() {
    let (mut driver, port) = connected_without_space(2);
    driver.send(Header::new(port + 1, OP_REQUEST), b"");
    driver.serve();
    assert_eq!(ops(&driver.receive()), [OP_RESPONSE, OP_RST]);
    // Received buffers are added again with space for data.
    driver.serve();
    assert_eq!(driver.receive()[0].1, b"input");
}

#[test]
fn a_connection_with_data_does_not_keep_a_receive_buffer_without_space_from_the_others() {
    let (mut driver, _) = connected_without_space(3);
    let (other, _) = driver.ports.listen(bridge(NONE, NONE));
    connect_and_keep_buffers(&mut driver, Header::new(other, OP_REQUEST));
    driver.send(Header::new(other, OP_CREDIT_REQUEST), b"");
    driver.serve();
    let packets = driver.receive();
    assert_eq!(ops(&packets), [OP_RESPONSE, OP_RESPONSE, OP_CREDIT_UPDATE]);
    assert_eq!((packets[2].0.src_port, packets[2].0.fwd_cnt), (other, 16), "credit counts the secret");
    driver.serve();
    assert_eq!(driver.receive()[0].1, b"input");
}

#[test]
fn chains_that_are_not_packets_are_used_without_an_answer() {
    let mut driver = Driver::new();
    let malformed = [
        Descriptor { addr: 0x10_0000, len: 10, flags: 0, next: 0 },
        Descriptor { addr: 0x10_0000, len: 44, flags: 2, next: 0 },
        Descriptor { addr: u64::MAX - 10, len: 44, flags: 0, next: 0 },
        Descriptor { addr: 1 << 40, len: u32::MAX, flags: 0, next: 0 },
        Descriptor { addr: 0x10_0000, len: 44, flags: 1, next: QUEUE_SIZE + 1 },
        Descriptor { addr: 0x10_0000, len: 0, flags: 0, next: 0 },
        Descriptor { addr: 0x10_0000, len: 64, flags: 4, next: 0 },
    ];
    for descriptor in malformed {
        let head = driver.next_head();
        driver.add_descriptor(head, descriptor);
    }
    // A descriptor that is its own successor, with a header that announces 4 GiB.
    let head = driver.next_head();
    let header = Header { len: u32::MAX, ..Header::new(5, OP_RW) };
    vm_memory::Bytes::write_obj(&driver.memory, header, vm_memory::GuestAddress(0x20_0000)).unwrap();
    driver.add_descriptor(head, Descriptor { addr: 0x20_0000, len: 44, flags: 1, next: head });
    driver.serve();
    assert_eq!(driver.take_transmitted(), malformed.len() + 1);
}

#[test]
fn a_packet_of_too_many_descriptors_is_ignored() {
    let (table, data) = (0x20_0000, 0x30_0000);
    for (count, answers) in [(128, 1), (129, 0), (4000, 0)] {
        let mut driver = Driver::new();
        let header = Header { len: u32::from(count) - 1, ..Header::new(5, OP_REQUEST) };
        vm_memory::Bytes::write_obj(&driver.memory, header, vm_memory::GuestAddress(data)).unwrap();
        for index in 0..count {
            let (addr, len) = if index == 0 { (data, 44) } else { (data + 44, 1) };
            let descriptor = Descriptor { addr, len, flags: u16::from(index + 1 < count), next: index + 1 };
            let at = vm_memory::GuestAddress(table + u64::from(index) * 16);
            vm_memory::Bytes::write_obj(&driver.memory, descriptor, at).unwrap();
        }
        let head = driver.next_head();
        driver.add_descriptor(head, Descriptor { addr: table, len: u32::from(count) * 16, flags: 4, next: 0 });
        driver.serve();
        assert_eq!((driver.take_transmitted(), driver.receive().len()), (1, answers), "{count} descriptors");
    }
}

#[test]
fn an_invalid_available_index_is_ignored() {
    for queue in [0, 1, 2] {
        let mut driver = Driver::without_buffers(true);
        driver.set_available_index(queue, 30_000);
        driver.send(Header::new(5, OP_REQUEST), b"");
        driver.set_available_index(queue, 30_000);
        driver.serve();
        assert!(driver.receive().is_empty());
    }
}

#[test]
fn chains_with_unplugged_memory_are_used_without_a_packet() {
    let mut driver = Driver::new();
    let (port, _) = driver.ports.listen(bridge(NONE, NONE));
    let request = Header::new(port, OP_REQUEST);
    for addr in [UNPLUGGED, UNPLUGGED - 20] {
        let head = driver.next_head();
        driver.add_descriptor(head, Descriptor { addr, len: 44, flags: 0, next: 0 });
        driver.serve();
        assert_eq!((driver.take_transmitted(), driver.receive().len()), (1, 0), "{addr:#x}");
    }
    driver.memory.write_obj(request, GuestAddress(PLUGGED)).unwrap();
    let head = driver.next_head();
    driver.add_descriptor(head, Descriptor { addr: PLUGGED, len: 44, flags: 0, next: 0 });
    driver.serve();
    assert_eq!(ops(&driver.receive()), [OP_RESPONSE], "plugged memory can be used");
}

#[test]
fn a_receive_buffer_in_unplugged_memory_gets_no_packet() {
    let mut driver = Driver::without_buffers(false);
    driver.add_receive_buffer_at(0, UNPLUGGED - 20);
    driver.add_receive_buffer_at(1, UNPLUGGED);
    driver.add_receive_buffers_from(2, QUEUE_SIZE);
    let (port, _) = driver.ports.listen(bridge(NONE, NONE));
    driver.send(Header::new(port, OP_REQUEST), b"");
    driver.serve();
    assert_eq!([driver.take_received(), driver.take_received()], [Some((0, 0)), Some((1, 0))]);
    assert_eq!(ops(&driver.receive()), [OP_RESPONSE]);
}
