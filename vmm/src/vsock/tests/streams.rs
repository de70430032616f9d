//! Data between host descriptors and the guest.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::super::BUFFER_SIZE;
use super::super::handler::{BATCH, RX};
use super::*;

fn rw(port: u32) -> Header {
    Header::new(port, OP_RW)
}

#[test]
fn a_socket_carries_data_in_both_directions() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let (mut driver, port, flow) = connected(bridge(Some(ours.try_clone().unwrap()), Some(ours)));
    assert!(driver.exchange(rw(port), b"to the host").is_empty());
    let mut got = [0; 11];
    theirs.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"to the host");
    assert!(flow.is_drained());
    theirs.write_all(b"to the guest").unwrap();
    driver.host_events();
    let packets = driver.receive();
    assert_eq!(packets[0].1, b"to the guest");
    assert_eq!(packets[0].0.fwd_cnt, 16 + 11, "of the secret and the data");
    drop(theirs);
    driver.host_events();
    let end = driver.receive();
    assert_eq!((end[0].0.op, end[0].0.flags), (OP_SHUTDOWN, SHUTDOWN_SEND));
}

#[test]
fn input_pauses_at_the_guests_credit_and_continues() {
    let file = tempfile::tempfile().unwrap();
    let content: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    (&file).write_all(&content).unwrap();
    std::io::Seek::rewind(&mut (&file)).unwrap();
    let mut driver = Driver::new();
    let (port, _) = driver.ports.listen(bridge(Some(file), NONE));
    driver.send(Header::new(port, OP_REQUEST), b"");
    let secret = driver.ports.secret();
    driver.send(Header::new(port, OP_RW), secret.bytes());
    let mut got: Vec<u8> = Vec::new();
    let mut ended = false;
    for round in 1..=4 {
        driver.serve();
        while let packets @ [_, ..] = driver.receive().as_slice() {
            for (header, data) in packets {
                ended |= header.op == OP_SHUTDOWN;
                got.extend(data);
            }
            driver.serve();
        }
        assert_eq!(got.len(), content.len().min(round * (64 << 10)));
        let fwd_cnt = got.len().try_into().unwrap();
        driver.send(Header { fwd_cnt, ..Header::new(port, OP_CREDIT_UPDATE) }, b"");
    }
    assert!(ended && got == content);
}

#[test]
fn a_slow_reader_gets_all_data_and_the_guest_regains_its_credit() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (mut driver, port, flow) = connected(bridge(NONE, Some(writer)));
    // The secret counts, too.
    let (mut sent, mut forwarded, mut sum) = (16_u32, 0_u32, 0_usize);
    while sent < 4 << 20 {
        let credit = BUFFER_SIZE - (sent - forwarded);
        let packets = if credit > 0 {
            let data = vec![1; credit.min(64 << 10) as usize];
            sent += credit.min(64 << 10);
            driver.exchange(rw(port), &data)
        } else {
            assert!(!flow.is_drained());
            sum += reader.read(&mut vec![0; 100_000]).unwrap();
            driver.host_events();
            driver.receive()
        };
        for (header, _) in packets {
            assert_eq!(header.op, OP_CREDIT_UPDATE);
            forwarded = header.fwd_cnt;
        }
    }
    driver.send(Header { flags: SHUTDOWN_RECEIVE | SHUTDOWN_SEND, ..Header::new(port, OP_SHUTDOWN) }, b"");
    driver.serve();
    assert_eq!(driver.receive().last().unwrap().0.op, OP_RST, "the guest does not wait for the host's reader");
    while sum < sent as usize - 16 {
        sum += reader.read(&mut vec![0; 100_000]).unwrap();
        driver.host_events();
    }
    assert!(flow.is_drained());
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0, "closed after all data was written");
    assert_eq!(driver.backend().sizes(), (0, 0, 0));
}

#[test]
fn the_drained_event_is_written_after_is_drained_returned_false() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (mut driver, port, flow) = connected(bridge(NONE, Some(writer)));
    driver.exchange(rw(port), &vec![7; 64 << 10]);
    driver.exchange(rw(port), &vec![8; 64 << 10]);
    assert!(!flow.is_drained());
    assert!(driver.ports.drained().read().is_err());
    reader.read_exact(&mut vec![0; 64 << 10]).unwrap();
    driver.host_events();
    assert_eq!(driver.ports.drained().read().unwrap(), 1);
    assert!(flow.is_drained());
}

#[test]
fn a_closed_reader_shuts_down_the_guests_sending() {
    let (reader, writer) = std::io::pipe().unwrap();
    let (mut driver, port, flow) = connected(bridge(NONE, Some(writer)));
    drop(reader);
    driver.host_events();
    let answer = driver.receive();
    assert_eq!((answer[0].0.op, answer[0].0.flags), (OP_SHUTDOWN, SHUTDOWN_RECEIVE));
    for _ in 0..10 {
        driver.exchange(rw(port), &vec![0; 64 << 10]);
    }
    assert!(flow.is_drained(), "pending data is dropped and its credit returned");
}

#[test]
fn each_direction_can_be_closed_first() {
    for guest_first in [true, false] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let (input, input_writer) = std::io::pipe().unwrap();
        let (mut driver, port, _) = connected(bridge(Some(input), Some(writer)));
        let guest_ends = |driver: &mut Driver| {
            driver.exchange(rw(port), b"final data");
            driver.exchange(Header { flags: SHUTDOWN_SEND, ..Header::new(port, OP_SHUTDOWN) }, b"")
        };
        if guest_first {
            assert!(guest_ends(&mut driver).is_empty());
            let mut output = String::new();
            reader.read_to_string(&mut output).unwrap();
            assert_eq!(output, "final data");
        }
        (&input_writer).write_all(b"more input").unwrap();
        drop(input_writer);
        driver.host_events();
        let packets = driver.receive();
        assert_eq!(packets[0].1, b"more input");
        assert_eq!(packets[1].0.op, OP_SHUTDOWN);
        if !guest_first {
            assert!(guest_ends(&mut driver).is_empty());
        }
        let end = driver.exchange(Header { flags: SHUTDOWN_RECEIVE, ..Header::new(port, OP_SHUTDOWN) }, b"");
        assert_eq!(end[0].0.op, OP_RST);
        assert_eq!(driver.backend().sizes(), (0, 0, 0));
    }
}

#[test]
fn data_after_shutdown_is_reset() {
    let (_reader, writer) = std::io::pipe().unwrap();
    let (mut driver, port, _) = connected(bridge(NONE, Some(writer)));
    driver.exchange(Header { flags: SHUTDOWN_SEND, ..Header::new(port, OP_SHUTDOWN) }, b"");
    assert_eq!(driver.exchange(rw(port), b"x")[0].0.op, OP_RST);
}

#[test]
fn closing_a_port_closes_its_descriptors() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut driver = Driver::new();
    let (port, _) = driver.ports.listen(bridge(NONE, Some(writer)));
    driver.ports.close(port);
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(driver.exchange(Header::new(port, OP_REQUEST), b"")[0].0.op, OP_RST);
}

#[test]
fn file_status_flags_of_passed_descriptors_do_not_change() {
    let (_reader, writer) = std::io::pipe().unwrap();
    let (input, _input_writer) = std::io::pipe().unwrap();
    let kept = (writer.try_clone().unwrap(), input.try_clone().unwrap());
    let (mut driver, port, _) = connected(bridge(Some(input), Some(writer)));
    for _ in 0..3 {
        driver.exchange(rw(port), &vec![0; 64 << 10]);
    }
    let blocking = |fd: std::os::fd::BorrowedFd| {
        let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL).unwrap();
        !nix::fcntl::OFlag::from_bits_retain(flags).contains(nix::fcntl::OFlag::O_NONBLOCK)
    };
    assert!(blocking(kept.0.as_fd()) && blocking(kept.1.as_fd()));
}

#[test]
fn files_without_poll_support_are_always_ready() {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
    let (mut driver, port, flow) = connected(bridge(Some(null.try_clone().unwrap()), Some(null)));
    driver.serve();
    driver.exchange(rw(port), b"into the void");
    assert!(flow.is_drained());
}

#[test]
fn a_guest_that_recycles_buffers_without_end_does_not_hold_the_event_loop() {
    let zero = std::fs::File::open("/dev/zero").unwrap();
    let mut driver = Driver::new();
    let (port, _) = driver.ports.listen(bridge(Some(zero), NONE));
    // Without credit nothing is sent yet.
    driver.connect(Header { buf_alloc: 0, ..Header::new(port, OP_REQUEST) });
    driver.send(Header { buf_alloc: u32::MAX, ..Header::new(port, OP_CREDIT_UPDATE) }, b"");
    let (mut whole_batches, end) = (0, Instant::now() + Duration::from_secs(60));
    while whole_batches < 3 {
        assert!(Instant::now() < end, "the other thread never recycled buffers in time");
        driver.clear_notifications();
        let count = driver.serve_and_recycle();
        assert!(count <= BATCH, "{count} packets in one call");
        if count == BATCH {
            assert!(driver.is_notified(RX), "the event loop calls again");
            whole_batches += 1;
        }
    }
}

#[test]
fn a_batch_of_packets_causes_one_interrupt() {
    let mut driver = Driver::new();
    for _ in 0..8 {
        driver.send(Header::new(5, OP_REQUEST), b"");
    }
    driver.serve();
    assert_eq!(driver.receive().len(), 8);
    assert_eq!(driver.line.read().unwrap(), 1);
}

#[test]
fn a_restored_guest_gets_one_transport_reset_event() {
    let mut driver = Driver::without_buffers(true);
    driver.serve();
    assert_eq!(driver.take_event(), None);
    driver.add_event_buffer();
    driver.serve();
    assert_eq!(driver.take_event(), Some(0));
    driver.add_event_buffer();
    driver.serve();
    assert_eq!(driver.take_event(), None, "once");
}
