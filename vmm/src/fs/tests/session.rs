//! Sessions, message lengths, lookup counts and limits of the tables.

use std::path::Path;

use zerocopy::{FromBytes, IntoBytes};

use super::guest::{Guest, nul};
use crate::fs::protocol::wire::*;
use crate::fs::server::Limits;

/// How many files below `path` this process has open. Other tests run in the process, too.
fn open_files_below(path: &Path) -> usize {
    let links =
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links.filter(|target| target.starts_with(path)).count()
}

#[test]
fn inodes_and_handles_are_limited() {
    let mut guest = Guest::with(Limits { inodes: 50, handles: 10 }, false);
    for number in 0..100 {
        std::fs::write(guest.host(&number.to_string()), "").unwrap();
    }
    let baseline = open_files_below(&guest.host(""));
    let mut nodes = Vec::new();
    let error = loop {
        match guest.lookup(guest.root, &nodes.len().to_string()) {
            Ok(entry) => nodes.push(entry.nodeid),
            Err(error) => break error,
        }
    };
    assert_eq!((nodes.len(), error), (49, libc::ENFILE), "the share's root is one");
    assert_eq!(open_files_below(&guest.host("")), baseline + 49);
    // Listing still works: entries that do not fit in the table have no inode.
    assert_eq!(guest.list(op::READDIRPLUS, guest.root, 4096).len(), 102);
    // Inodes in the table can be looked up any number of times.
    for _ in 0..100_000 {
        assert_eq!(guest.lookup(guest.root, "0").unwrap().nodeid, nodes[0]);
    }
    let opened = std::iter::repeat_with(|| guest.open(nodes[0], libc::O_RDONLY)).take_while(Result::is_ok).count();
    assert_eq!(opened, 10);
    for node in &nodes {
        guest.forget(*node, u64::MAX);
        guest.forget(*node, u64::MAX);
    }
    assert_eq!(guest.open(nodes[0], libc::O_RDONLY).map(|open| open.fh), Err(libc::ESTALE));
    guest.call(op::DESTROY, 0, &[]).unwrap();
    assert_eq!(open_files_below(&guest.host("")), 1, "the share's own");
}

#[test]
fn lookups_without_forget_affect_no_other_guest() {
    const FILES: u32 = 2000;
    const INODES: usize = 1000;
    let mut greedy = Guest::with(Limits { inodes: INODES, handles: 10 }, false);
    let mut other = Guest::with(Limits { inodes: 10, handles: 10 }, false);
    let path = greedy.host("");
    for number in 0..FILES {
        std::fs::write(greedy.host(&number.to_string()), "").unwrap();
    }
    std::fs::write(other.host("file"), "text").unwrap();
    let all_files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let (baseline, others) = (open_files_below(&path), all_files() - open_files_below(&path));
    let mut refused = 0;
    for number in 0..50_000 {
        match greedy.lookup(greedy.root, &(number % FILES).to_string()) {
            Ok(_) => {}
            Err(libc::ENFILE) => refused += 1,
            Err(error) => panic!("error {error}"),
        }
        if number % 1000 == 0 {
            let file = other.lookup(other.root, "file").unwrap().nodeid;
            let open = other.open(file, libc::O_RDONLY).unwrap();
            assert_eq!(other.read(file, open.fh, 0, 4).unwrap(), b"text");
            other.call(op::RELEASE, file, &[ReleaseIn { fh: open.fh, ..ReleaseIn::default() }.as_bytes()]).unwrap();
            other.forget(file, 1);
        }
    }
    assert_eq!((refused, open_files_below(&path)), (25_025, baseline + INODES - 1));
    drop(greedy);
    assert_eq!(open_files_below(&path), 0, "its descriptors are closed");
    // Other tests of this process open files, too.
    assert!(all_files() < others + INODES / 2);
}

#[test]
fn batch_forget_decrements_lookup_counts() {
    let mut guest = Guest::new();
    std::fs::write(guest.host("file"), "").unwrap();
    let node = guest.lookup(guest.root, "file").unwrap().nodeid;
    let batch = |count: u32| {
        let one = ForgetOne { nodeid: node, nlookup: 1 };
        [BatchForgetIn { count, dummy: 0 }.as_bytes(), one.as_bytes()].concat()
    };
    for _ in 0..2 {
        guest.lookup(guest.root, "file").unwrap();
    }
    // The count exceeds the number of entries. The entries that exist are applied.
    for count in [1, u32::MAX] {
        let header = guest.header(op::BATCH_FORGET, 0, batch(count).len());
        assert_eq!(guest.raw(&[header.as_bytes(), &batch(count)], &mut [0; 64]), 0);
        guest.open(node, libc::O_RDONLY).unwrap();
    }
    guest.forget(node, 1);
    assert_eq!(guest.open(node, libc::O_RDONLY).map(|open| open.fh), Err(libc::ESTALE));
}

#[test]
fn wrong_lengths_are_rejected() {
    let mut guest = Guest::new();
    let mut space = [0; 4096];
    for len in [0, 39, 40, 41, 43, 100_000, u32::MAX] {
        let header = InHeader { len, ..guest.header(op::LOOKUP, ROOT_ID, 2) };
        assert_eq!(guest.raw(&[header.as_bytes(), b"c\0"], &mut space), OUT_HEADER, "{len}");
        assert_eq!(OutHeader::read_from_prefix(&space).unwrap().0.error, -libc::EINVAL, "{len}");
    }
    let header = guest.header(op::LOOKUP, ROOT_ID, 2);
    assert_eq!(guest.raw(&[&header.as_bytes()[..39]], &mut space), 0, "not even a header");
    assert_eq!(guest.raw(&[], &mut space), 0);
    for space_length in [0, 15] {
        assert_eq!(guest.raw(&[header.as_bytes(), b"c\0"], &mut space[..space_length]), 0, "no space for a header");
    }
    assert_eq!(guest.raw(&[header.as_bytes(), b"c\0"], &mut space[..100]), OUT_HEADER, "no space for the entry");
    assert_eq!(OutHeader::read_from_prefix(&space).unwrap().0.error, -libc::EIO);
    let (file, open) = guest.create("file", libc::O_RDWR, 0o644).unwrap();
    for size in [5, 1 << 20, u32::MAX] {
        let args = WriteIn { fh: open.fh, size, ..WriteIn::default() };
        assert_eq!(guest.call(op::WRITE, file.nodeid, &[args.as_bytes(), b"data"]), Err(libc::EINVAL));
        let args = SetxattrIn { size, ..SetxattrIn::default() };
        let body = [args.as_bytes(), &nul("user.x"), b"data"].concat();
        assert_eq!(guest.call(op::SETXATTR, file.nodeid, &[&body]), Err(libc::EINVAL));
    }
    assert_eq!(guest.read(file.nodeid, open.fh, 0, u32::MAX), Err(libc::EINVAL));
    assert_eq!(guest.call(op::LOOKUP, ROOT_ID, &[&vec![b'x'; 1 << 20]]), Err(libc::EINVAL));
    let header = InHeader { total_extlen: u16::MAX, ..guest.header(op::LOOKUP, ROOT_ID, 2) };
    assert_eq!(guest.raw(&[header.as_bytes(), b"c\0"], &mut space), OUT_HEADER);
}

#[test]
fn a_session_starts_with_init() {
    let mut guest = Guest::new();
    let (file, open) = guest.create("file", libc::O_RDWR, 0o644).unwrap();
    guest.init().unwrap();
    assert_eq!(guest.read(file.nodeid, open.fh, 0, 1), Err(libc::EBADF), "a second INIT starts a new session");
    assert_eq!(guest.open(file.nodeid, libc::O_RDONLY).map(|open| open.fh), Err(libc::ESTALE));
    guest.find_root();
    guest.call(op::DESTROY, 0, &[]).unwrap();
    assert_eq!(guest.lookup(ROOT_ID, "c").map(|entry| entry.nodeid), Err(libc::EIO));
    let old = InitIn { major: MAJOR, minor: OLDEST_MINOR - 1, ..InitIn::default() };
    assert_eq!(guest.call(op::INIT, 0, &[old.as_bytes()]), Err(libc::EPROTO));
    let newer = InitIn { major: MAJOR + 1, ..InitIn::default() };
    let out: InitOut = guest.ask(op::INIT, 0, &newer, &[]).unwrap();
    assert_eq!(out.major, MAJOR);
    assert_eq!(
        guest.lookup(ROOT_ID, "c").map(|entry| entry.nodeid),
        Err(libc::EIO),
        "the reply only contains the version"
    );
    assert_eq!(guest.call(op::INIT, 0, &[&[0; 15]]), Err(libc::EINVAL));
    guest.init().unwrap();
    guest.lookup(ROOT_ID, "c").unwrap();
}

#[test]
fn unknown_node_ids_handles_and_opcodes_are_rejected() {
    let mut guest = Guest::new();
    let (file, open) = guest.create("file", libc::O_RDWR, 0o644).unwrap();
    for node in [0, 999, u64::MAX >> 1] {
        assert_eq!(guest.call(op::GETATTR, node, &[&[0; 16]]), Err(libc::ENOENT));
        assert_eq!(guest.lookup(node, "x").map(|entry| entry.nodeid), Err(libc::ENOENT));
    }
    assert_eq!(guest.call(op::GETATTR, u64::MAX, &[&[0; 16]]), Err(libc::ESTALE), "of a removed container");
    for fh in [0, open.fh + 1, u64::MAX] {
        assert_eq!(guest.read(file.nodeid, fh, 0, 1), Err(libc::EBADF));
        assert_eq!(guest.write(file.nodeid, fh, 0, b"x", 0), Err(libc::EBADF));
    }
    assert_eq!(guest.read(guest.root, open.fh, 0, 1), Err(libc::EBADF), "another inode's handle");
    let args = ReadIn { fh: open.fh, size: 100, ..ReadIn::default() };
    assert_eq!(guest.call(op::READDIR, file.nodeid, &[args.as_bytes()]), Err(libc::ENOTDIR));
    for opcode in [0, 7, 19, 25, 31, 33, 34, 39, 48, 53, 4096, u32::MAX] {
        assert_eq!(guest.call(opcode, file.nodeid, &[&[0; 64]]), Err(libc::ENOSYS), "{opcode}");
    }
    let allocate = FallocateIn { fh: open.fh, length: 1, mode: u32::MAX, ..FallocateIn::default() };
    assert_eq!(guest.call(op::FALLOCATE, file.nodeid, &[allocate.as_bytes()]), Err(libc::EOPNOTSUPP));
}
