//! Credit and data of a stream between a guest and a host that keep to the protocol, in any order of their steps.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use agent::StreamSecret;
use proptest::collection::vec;
use proptest::prelude::*;

use super::super::BUFFER_SIZE;
use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The guest sends up to this many bytes, as far as it has credit.
    GuestSends(u32),
    /// A process of the guest reads up to this many received bytes.
    GuestReads(u32),
    /// The guest changes the size of its buffer.
    GuestBuffer(u32),
    GuestRequestsCredit,
    HostWrites(usize),
    HostReads(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..=64_u32 << 10).prop_map(Step::GuestSends),
        (1..=100_000_u32).prop_map(Step::GuestReads),
        (0..=100_000_u32).prop_map(Step::GuestBuffer),
        Just(Step::GuestRequestsCredit),
        (1..=50_000_usize).prop_map(Step::HostWrites),
        (1..=200_000_usize).prop_map(Step::HostReads),
    ]
}

/// The byte at a position of a stream.
fn byte(position: usize) -> u8 {
    (position % 251).to_le_bytes()[0]
}

fn bytes(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(byte).collect()
}

/// A stream and what each side knows of it. Positions of the guest's data count from the secret, as credit does.
struct Stream {
    driver: Driver,
    port: u32,
    host: UnixStream,
    guest_sent: u32,
    /// The host's credit, as its last packet said.
    host_forwarded: u32,
    guest_received: u32,
    guest_read: u32,
    guest_buffer: u32,
    host_written: usize,
    host_read: usize,
}

impl Stream {
    fn new() -> Self {
        let (ours, host) = UnixStream::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        let (driver, port, _flow) = connected(bridge(Some(ours.try_clone().unwrap()), Some(ours)));
        Self {
            driver,
            port,
            host,
            guest_sent: u32::try_from(StreamSecret::LENGTH).unwrap(),
            host_forwarded: 0,
            guest_received: 0,
            guest_read: 0,
            guest_buffer: 64 << 10,
            host_written: 0,
            host_read: StreamSecret::LENGTH,
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::GuestSends(most) => {
                let length = most.min(BUFFER_SIZE - (self.guest_sent - self.host_forwarded));
                let data = bytes(self.guest_sent as usize, length as usize);
                self.guest_sent += length;
                self.send(OP_RW, &data);
            }
            Step::GuestReads(most) => {
                self.guest_read += most.min(self.guest_received - self.guest_read);
                self.send(OP_CREDIT_UPDATE, b"");
            }
            Step::GuestBuffer(size) => {
                self.guest_buffer = size;
                self.send(OP_CREDIT_UPDATE, b"");
            }
            Step::GuestRequestsCredit => self.send(OP_CREDIT_REQUEST, b""),
            Step::HostWrites(length) => {
                let data = bytes(self.host_written, length);
                self.host_written += self.host.write(&data).unwrap_or(0);
            }
            Step::HostReads(most) => self.host_reads(most),
        }
        self.driver.host_events();
        self.receive();
    }

    fn send(&mut self, op: u16, data: &[u8]) {
        let (buf_alloc, fwd_cnt) = (self.guest_buffer, self.guest_read);
        self.driver.send(Header { buf_alloc, fwd_cnt, ..Header::new(self.port, op) }, data);
        self.driver.serve();
        self.driver.take_transmitted();
        self.receive();
    }

    fn host_reads(&mut self, most: usize) {
        let mut data = vec![0; most];
        match self.host.read(&mut data) {
            Ok(count) => {
                assert_eq!(data[..count], bytes(self.host_read, count));
                self.host_read += count;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }

    /// Takes all packets to the guest.
    fn receive(&mut self) {
        while let packets @ [_, ..] = self.driver.receive().as_slice() {
            for (header, data) in packets {
                assert!(matches!(header.op, OP_RW | OP_CREDIT_UPDATE), "operation {}", header.op);
                assert_eq!(data[..], bytes(self.guest_received as usize, data.len()));
                self.guest_received += header.len;
                let waiting = self.guest_received - self.guest_read;
                assert!(header.len == 0 || waiting <= self.guest_buffer, "{waiting} of {}", self.guest_buffer);
                assert!(header.fwd_cnt >= self.host_forwarded && header.fwd_cnt <= self.guest_sent);
                self.host_forwarded = header.fwd_cnt;
            }
            self.driver.serve();
        }
    }

    /// Both sides read until nothing is left.
    fn drain(&mut self) {
        self.run(Step::GuestBuffer(64 << 10));
        for _ in 0..100 {
            self.run(Step::GuestReads(u32::MAX));
            self.run(Step::HostReads(1 << 20));
        }
        assert_eq!((self.host_read, self.guest_received as usize), (self.guest_sent as usize, self.host_written));
        let credit = BUFFER_SIZE - (self.guest_sent - self.host_forwarded);
        assert!(credit >= BUFFER_SIZE / 2, "the guest has {credit} bytes of credit for a stream without data");
        self.run(Step::GuestRequestsCredit);
        assert_eq!(self.host_forwarded, self.guest_sent, "the answer to a request has the whole credit");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(50) })]

    #[test]
    fn all_data_arrives_and_no_side_exceeds_the_others_credit(steps in vec(step(), 1..60)) {
        let mut stream = Stream::new();
        steps.into_iter().for_each(|step| stream.run(step));
        stream.drain();
    }
}

#[test]
fn a_guest_that_sends_while_it_takes_no_credit_updates_is_not_stopped() {
    let mut driver = Driver::without_buffers(false);
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
    let (port, flow) = driver.ports.listen(bridge(NONE, Some(null)));
    driver.add_receive_buffers(1);
    driver.exchange(Header::new(port, OP_REQUEST), b"");
    // The only receive buffer is used up by the first update, and the sink takes all data at once.
    for _ in 0..12 {
        driver.send(Header::new(port, OP_RW), &vec![0; 64 << 10]);
        driver.serve();
        assert_eq!(driver.take_transmitted(), 1);
    }
    assert!(flow.is_drained());
}
