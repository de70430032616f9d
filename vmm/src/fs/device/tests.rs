//! Tests of the device through its virtqueues.

mod hand_over;

use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::config::ShareOptions;
use crate::fs::protocol::wire::{
    EntryOut, FsyncIn, IN_HEADER, InHeader, InitIn, MAJOR, MINOR, OpenOut, OutHeader, ROOT_ID, op,
};
use crate::fs::server::Limits;
use crate::fs::tables::shares::SharesHandle;
use crate::fs::worker::proc_fds::ProcFds;
use crate::virtio::testing::rewriting::{Chain, rewrite_while_read};
use crate::virtio::testing::{Driver, PLUGGED, UNPLUGGED, life_cycle};

fn header(opcode: u32, nodeid: u64, body: usize) -> InHeader {
    let len = u32::try_from(IN_HEADER + body).unwrap();
    InHeader { len, opcode, nodeid, unique: 7, ..InHeader::default() }
}

fn call(driver: &mut Driver<FsDevice>, opcode: u32, nodeid: u64, body: &[u8]) -> (OutHeader, Vec<u8>) {
    let reply = driver.request(1, &[header(opcode, nodeid, body.len()).as_bytes(), body], &[16, 4096]);
    let (out, body) = OutHeader::read_from_prefix(&reply).unwrap();
    assert_eq!(usize::try_from(out.len).unwrap(), reply.len());
    (out, body.to_vec())
}

fn init(driver: &mut Driver<FsDevice>) {
    let args = InitIn { major: MAJOR, minor: MINOR, max_readahead: 0, flags: 0 };
    assert_eq!(call(driver, op::INIT, 0, args.as_bytes()).0.error, 0);
}

fn shares() -> (tempfile::TempDir, SharesHandle) {
    let directory = tempfile::tempdir().unwrap();
    let shares = SharesHandle::new();
    shares.add("c/share", std::fs::File::open(directory.path()).unwrap().into(), ShareOptions::default()).unwrap();
    (directory, shares)
}

fn server(shares: SharesHandle) -> Server {
    let limits = Limits { inodes: 1000, handles: 100 };
    Server::new(shares, limits, ProcFds::open().unwrap(), None)
}

#[test]
fn the_device_passes_the_life_cycle_test() {
    let (_directory, shares) = shares();
    let make = |state| FsDevice::new("vmrt", server(shares.clone()), 1, state).unwrap();
    let mut inode = None;
    let mut lives = 0;
    life_cycle(make, |driver| {
        lives += 1;
        // A restored device continues the session. After a reset, the driver starts a new one.
        if lives != 2 {
            init(driver);
            inode = None;
        }
        let container = call(driver, op::LOOKUP, ROOT_ID, b"c\0").1;
        let container = EntryOut::read_from_prefix(&container).unwrap().0.nodeid;
        let (out, share) = call(driver, op::LOOKUP, container, b"share\0");
        assert_eq!(out.error, 0);
        let share = EntryOut::read_from_prefix(&share).unwrap().0.nodeid;
        assert_eq!(*inode.get_or_insert(share), share, "known by the same node id");
        let (_, open) = call(driver, op::OPENDIR, share, &[0; 8]);
        let fh = OpenOut::read_from_prefix(&open).unwrap().0.fh;
        // The blocking pool serves this request.
        let sync = FsyncIn { fh, ..FsyncIn::default() };
        assert_eq!(call(driver, op::FSYNCDIR, share, sync.as_bytes()).0.error, 0);
    });
    assert_eq!(lives, 3);
}

#[test]
fn requests_before_init_fail_and_forgets_have_no_reply() {
    let (_directory, shares) = shares();
    let mut driver = Driver::new(FsDevice::new("vmrt", server(shares), 1, None).unwrap());
    driver.set_up();
    assert_eq!(call(&mut driver, op::LOOKUP, ROOT_ID, b"c\0").0.error, -libc::EIO);
    assert!(driver.request(0, &[header(op::FORGET, 9, 8).as_bytes(), &[0; 8]], &[]).is_empty());
    assert!(driver.request(1, &[b"short"], &[4096]).is_empty());
    assert!(driver.request(1, &[header(op::LOOKUP, ROOT_ID, 2).as_bytes(), b"c\0"], &[15]).is_empty());
}

#[test]
fn a_chain_with_unplugged_memory_is_used_with_length_0() {
    let (_directory, shares) = shares();
    let mut driver = Driver::new(FsDevice::new("vmrt", server(shares), 1, None).unwrap());
    driver.set_up();
    init(&mut driver);
    // Request header, name, reply header and reply, which have 40, 2, 16 and 4096 bytes.
    for (position, address) in
        [0, 1, 2, 3].into_iter().flat_map(|buffer| [(buffer, UNPLUGGED), (buffer, UNPLUGGED - 1)])
    {
        let header = header(op::LOOKUP, ROOT_ID, 2);
        let head = driver.make_available(1, &[header.as_bytes(), b"c\0"], &[16, 4096]);
        driver.move_buffer(1, head, position, address);
        driver.notify(1);
        assert_eq!(driver.take_used_element(1), (head, 0), "{position}, {address:#x}");
    }
    let header = header(op::LOOKUP, ROOT_ID, 2);
    let head = driver.make_available(1, &[header.as_bytes(), b"c\0"], &[16, 4096]);
    driver.move_buffer(1, head, 3, PLUGGED);
    driver.notify(1);
    let written = u32::try_from(size_of::<OutHeader>() + size_of::<EntryOut>()).unwrap();
    assert_eq!(driver.take_used_element(1), (head, written), "plugged memory can be used");
}

#[test]
fn chains_that_change_while_they_are_read_do_no_harm() {
    let (directory, shares) = shares();
    std::fs::write(directory.path().join("file"), "text").unwrap();
    let mut driver = Driver::new(FsDevice::new("vmrt", server(shares), 1, None).unwrap());
    let args = InitIn { major: MAJOR, minor: MINOR, max_readahead: 0, flags: 0 };
    let init = header(op::INIT, 0, size_of::<InitIn>());
    let lookup = header(op::LOOKUP, ROOT_ID, 2);
    let sync = header(op::FSYNCDIR, ROOT_ID, size_of::<FsyncIn>());
    let sync_args = FsyncIn::default();
    let forget = header(op::FORGET, 2, 8);
    let chains = [
        Chain { queue: 0, readable: &[forget.as_bytes(), &[0; 8]], writable: &[] },
        Chain { queue: 1, readable: &[init.as_bytes(), args.as_bytes()], writable: &[16, 64] },
        Chain { queue: 1, readable: &[lookup.as_bytes(), b"c\0"], writable: &[16, 4096] },
        Chain { queue: 1, readable: &[sync.as_bytes(), sync_args.as_bytes()], writable: &[16] },
    ];
    let opcodes = [op::LOOKUP, op::GETATTR, op::READDIR, op::OPENDIR, op::READ, op::WRITE, op::FSYNC, op::SETXATTR];
    let words: Vec<u64> = opcodes.iter().flat_map(|op| [42 | u64::from(*op) << 32, u64::from(*op)]).collect();
    let used = rewrite_while_read(&mut driver, &chains, &words, || ());
    assert!(used > 100, "{used} chains were used");
    driver.set_up();
    init_and_look_up(&mut driver);
    assert_eq!(std::fs::read(directory.path().join("file")).unwrap(), b"text");
}

fn init_and_look_up(driver: &mut Driver<FsDevice>) {
    init(driver);
    assert_eq!(call(driver, op::LOOKUP, ROOT_ID, b"c\0").0.error, 0);
}

/// An active driver, and a request that the blocking pool serves.
fn driver_and_blocking_request(shares: SharesHandle) -> (Driver<FsDevice>, InHeader, FsyncIn) {
    let mut driver = Driver::new(FsDevice::new("vmrt", server(shares), 1, None).unwrap());
    driver.set_up();
    init(&mut driver);
    let container = call(&mut driver, op::LOOKUP, ROOT_ID, b"c\0").1;
    let container = EntryOut::read_from_prefix(&container).unwrap().0.nodeid;
    let share = call(&mut driver, op::LOOKUP, container, b"share\0").1;
    let share = EntryOut::read_from_prefix(&share).unwrap().0.nodeid;
    let open = call(&mut driver, op::OPENDIR, share, &[0; 8]).1;
    let sync = FsyncIn { fh: OpenOut::read_from_prefix(&open).unwrap().0.fh, ..FsyncIn::default() };
    (driver, header(op::FSYNCDIR, share, size_of::<FsyncIn>()), sync)
}

#[test]
fn blocking_requests_are_completed_before_the_device_is_deactivated() {
    let (directory, shares) = shares();
    let (mut driver, header, sync) = driver_and_blocking_request(shares);
    let heads: Vec<u16> =
        (0..50).map(|_| driver.make_available(1, &[header.as_bytes(), sync.as_bytes()], &[16])).collect();
    driver.notify(1);
    let mut seen: Vec<u16> = heads.iter().map(|_| driver.wait_used(1).head).collect();
    seen.sort_unstable();
    assert_eq!(seen, heads, "each once");
    for _ in 0..50 {
        driver.make_available(1, &[header.as_bytes(), sync.as_bytes()], &[16]);
    }
    driver.notify(1);
    driver.reset();
    drop(directory);
    driver.set_up();
    init(&mut driver);
}

#[test]
fn a_device_is_dropped_with_requests_in_flight() {
    for requests in [1, 10, 100] {
        let (_directory, shares) = shares();
        let (mut driver, header, sync) = driver_and_blocking_request(shares);
        for _ in 0..requests {
            driver.make_available(1, &[header.as_bytes(), sync.as_bytes()], &[16]);
        }
        driver.notify(1);
        // Memory, queues and device are dropped in the order of the driver's fields: the device first.
        drop(driver);
    }
}

#[test]
fn the_configuration_space_holds_tag_and_queue_count() {
    let (_directory, shares) = shares();
    let device = FsDevice::new("vmrt", server(shares.clone()), 3, None).unwrap();
    let config = device.config();
    assert_eq!(&config[..6], b"vmrt\0\0");
    assert_eq!(config[36..], [3, 0, 0, 0]);
    assert_eq!(device.queue_sizes(), [1024; 4]);
    for tag in ["", &"x".repeat(37)] {
        assert!(matches!(FsDevice::new(tag, server(shares.clone()), 1, None), Err(FsError::Tag(_))));
    }
}
