//! The life cycle test that every device passes, and the device configuration space.

use std::io::Read;

use virtio_queue::QueueT;
use vm_memory::ByteValued;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::handler::{EVENT, RX, TX};
use super::super::{GUEST_CID, Ports, Vsock, VsockState};
use super::*;
use crate::virtio::device::{ActivateError, Activation, Interrupt, VirtQueue, VirtioDevice};
use crate::virtio::registers::RegisterPage;
use crate::virtio::testing::rewriting::{Chain, rewrite_while_read};
use crate::virtio::testing::{self, LoopThread};

fn op(packet: &[u8]) -> u16 {
    Header::from_slice(packet).unwrap().op
}

/// Connects, sends a line and closes the connection.
fn work(ports: &Ports, driver: &mut testing::Driver<Vsock>) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (port, _) = ports.listen(bridge(NONE, Some(writer)));
    driver.make_available(RX, &[], &[44, 100]);
    driver.request(TX, &[Header::new(port, OP_REQUEST).as_slice()], &[]);
    assert_eq!(op(&driver.wait_used(RX).data), OP_RESPONSE);
    let data = [ports.secret().bytes().as_slice(), b"line\n"].concat();
    let header = Header { len: data.len().try_into().unwrap(), ..Header::new(port, OP_RW) };
    driver.request(TX, &[header.as_slice(), &data], &[]);
    driver.make_available(RX, &[], &[44, 100]);
    let end = Header { flags: SHUTDOWN_RECEIVE | SHUTDOWN_SEND, ..Header::new(port, OP_SHUTDOWN) };
    driver.request(TX, &[end.as_slice()], &[]);
    assert_eq!(op(&driver.wait_used(RX).data), OP_RST);
    let mut output = String::new();
    reader.read_to_string(&mut output).unwrap();
    assert_eq!(output, "line\n");
}

#[test]
fn the_device_passes_the_life_cycle_test() {
    let event_loop = LoopThread::start();
    let ports = Ports::new().unwrap();
    let make = |state: Option<VsockState>| Vsock::new(ports.clone(), event_loop.handle(), state).unwrap();
    let mut rounds = 0;
    testing::life_cycle(make, |driver| {
        work(&ports, driver);
        rounds += 1;
        if rounds == 2 {
            // The second device is restored. Its guest gets a transport reset event.
            assert_eq!(driver.request(EVENT, &[], &[4]), [0; 4]);
        }
    });
    assert_eq!(rounds, 3);
}

#[test]
fn the_configuration_space_holds_the_guest_cid() {
    let event_loop = LoopThread::start();
    let device = Vsock::new(Ports::new().unwrap(), event_loop.handle(), None).unwrap();
    assert_eq!(device.config(), GUEST_CID.to_le_bytes());
}

#[test]
fn activation_fails_if_a_queue_is_not_enabled() {
    let event_loop = LoopThread::start();
    let mut device = Vsock::new(Ports::new().unwrap(), event_loop.handle(), None).unwrap();
    let event = || EventFd::new(EFD_NONBLOCK).unwrap();
    let mut queues: Vec<_> = device.queue_sizes().iter().map(|size| VirtQueue::new(*size, event())).collect();
    queues[RX].queue.set_ready(true);
    let memory = crate::arch::Memory::from_ranges(&[(vm_memory::GuestAddress(0), 4096)]).unwrap();
    let interrupt = Interrupt::new(RegisterPage::map(1).unwrap()[0], std::sync::Arc::new(event()));
    let result = device.activate(Activation { memory, queues, interrupt, features: 0 });
    assert!(matches!(result, Err(ActivateError::QueueDisabled(TX))));
    assert!(device.deactivate().is_empty());
}

#[test]
fn chains_that_change_while_they_are_read_do_no_harm() {
    let event_loop = LoopThread::start();
    let ports = Ports::new().unwrap();
    let mut driver = testing::Driver::new(Vsock::new(ports.clone(), event_loop.handle(), None).unwrap());
    let (reader, writer) = std::io::pipe().unwrap();
    let (port, _) = ports.listen(bridge(NONE, Some(writer)));
    let request = Header::new(port, OP_REQUEST);
    let data = Header { len: 64, ..Header::new(port, OP_RW) };
    let chains = [
        Chain { queue: RX, readable: &[], writable: &[44, 100] },
        Chain { queue: TX, readable: &[request.as_slice()], writable: &[] },
        Chain { queue: TX, readable: &[data.as_slice(), &[7; 64]], writable: &[] },
        Chain { queue: EVENT, readable: &[], writable: &[4] },
    ];
    let ops = [OP_REQUEST, OP_RST, OP_SHUTDOWN, OP_RW, OP_CREDIT_UPDATE, OP_CREDIT_REQUEST];
    let words: Vec<u64> = ops.iter().map(|op| 1 | u64::from(*op) << 16).chain([0, 64, 9, port.into()]).collect();
    let used = rewrite_while_read(&mut driver, &chains, &words, || ());
    assert!(used > 100, "{used} chains were used");
    // The guest does not know the secret, so the host gets nothing.
    drop(ports);
    drop(driver);
    drop(event_loop);
    assert_eq!(std::io::read_to_string(reader).unwrap(), "");
}
