//! Attempts of an untrusted guest to reach beyond its shares (the threat list's rows about the file server).

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, RenameFlags};
use zerocopy::{FromBytes, IntoBytes};

use super::guest::{Guest, nul, tree_state};
use crate::fs::protocol::wire::*;
use crate::fs::server::Limits;
use crate::virtio::testing::rewriting::Random;

const WRITE_ONLY: u32 = libc::O_WRONLY.cast_unsigned();

/// All requests with a name, with `name` in place of that name. Their other names are valid.
fn requests_with_name(guest: &Guest, name: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let good = nul("good");
    let rename = RenameIn { newdir: guest.root };
    let rename2 = Rename2In { newdir: guest.root, flags: libc::RENAME_EXCHANGE, padding: 0 };
    let node = MknodIn { mode: libc::S_IFREG | 0o644, ..MknodIn::default() };
    let create = CreateIn { flags: libc::O_RDWR.cast_unsigned(), mode: 0o644, ..CreateIn::default() };
    vec![
        (op::LOOKUP, name.to_vec()),
        (op::UNLINK, name.to_vec()),
        (op::RMDIR, name.to_vec()),
        (op::MKDIR, [MkdirIn { mode: 0o755, umask: 0 }.as_bytes(), name].concat()),
        (op::MKNOD, [node.as_bytes(), name].concat()),
        (op::CREATE, [create.as_bytes(), name].concat()),
        (op::LINK, [LinkIn { oldnodeid: guest.root + 1 }.as_bytes(), name].concat()),
        (op::SYMLINK, [name, b"target\0"].concat()),
        (op::RENAME, [rename.as_bytes(), name, &good].concat()),
        (op::RENAME, [rename.as_bytes(), &good, name].concat()),
        (op::RENAME2, [rename2.as_bytes(), name, &good].concat()),
        (op::RENAME2, [rename2.as_bytes(), &good, name].concat()),
    ]
}

#[test]
fn names_other_than_one_path_component_are_rejected() {
    let mut guest = Guest::new();
    std::fs::create_dir(guest.host("dir")).unwrap();
    std::fs::write(guest.host("dir/file"), "").unwrap();
    std::fs::write(guest.host("good"), "").unwrap();
    assert_eq!(guest.lookup(guest.root, "good").unwrap().nodeid, guest.root + 1);
    let outside = guest.host("").parent().unwrap().join("vmrt-outside-of-the-share");
    let long = [vec![b'x'; 256], vec![0]].concat();
    let longer = [vec![b'x'; 5000], vec![0]].concat();
    let absolute = nul(outside.to_str().unwrap());
    let bad: [&[u8]; 15] = [
        &absolute,
        b"/\0",
        b"/etc\0",
        b"..\0",
        b".\0",
        b"../x\0",
        b"dir/file\0",
        b"dir/\0",
        b"/good\0",
        b"good/..\0",
        b"\0",
        b"",
        b"no nul",
        &long,
        &longer,
    ];
    let before = tree_state(&guest.host(""));
    for name in bad {
        for (opcode, body) in requests_with_name(&guest, name) {
            let answer = guest.call(opcode, guest.root, &[&body]);
            let refused = [Err(libc::EINVAL), Err(libc::ENAMETOOLONG)].contains(&answer);
            // If the name is missing or has no NUL, the following string may be taken for it.
            let misread = name.last() != Some(&0) && answer == Err(libc::ENOENT);
            assert!(refused || misread, "{opcode} {:?}: {answer:?}", String::from_utf8_lossy(name));
        }
    }
    for (opcode, body) in requests_with_name(&guest, b"in\0ner\0") {
        assert!(guest.call(opcode, guest.root, &[&body]).is_err(), "{opcode}: a NUL inside");
    }
    assert_eq!(tree_state(&guest.host("")), before);
    assert!(!outside.exists());
}

#[test]
fn symlinks_swapped_during_a_lookup_are_not_followed() {
    let mut guest = Guest::new();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("file"), "outside").unwrap();
    std::fs::create_dir(guest.host("dir")).unwrap();
    std::fs::write(guest.host("dir/file"), "inside").unwrap();
    std::fs::write(guest.host("name"), "inside").unwrap();
    symlink(outside.path(), guest.host("other-dir")).unwrap();
    symlink(outside.path().join("file"), guest.host("other-name")).unwrap();
    let pairs = [(guest.host("dir"), guest.host("other-dir")), (guest.host("name"), guest.host("other-name"))];
    let done = AtomicBool::new(false);
    let (mut inside, mut links) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for (one, two) in &pairs {
                    rustix::fs::renameat_with(CWD, one, CWD, two, RenameFlags::EXCHANGE).unwrap();
                }
            }
        });
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            for name in ["name", "dir"] {
                let entry = guest.lookup(guest.root, name).unwrap();
                let file = match name {
                    "dir" => guest.lookup(entry.nodeid, "file").map(|file| file.nodeid),
                    _ => Ok(entry.nodeid),
                };
                let read = file.and_then(|file| Ok((file, guest.open(file, libc::O_RDONLY)?.fh)));
                match read {
                    Ok((file, fh)) => {
                        assert_eq!(guest.read(file, fh, 0, 100).unwrap(), b"inside");
                        let release = ReleaseIn { fh, ..ReleaseIn::default() };
                        guest.call(op::RELEASE, file, &[release.as_bytes()]).unwrap();
                        inside += 1;
                    }
                    Err(libc::ELOOP | libc::ENOTDIR) => links += 1,
                    Err(error) => panic!("error {error}"),
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(inside > 100 && links > 100, "both cases occurred: {inside} files, {links} links");
}

#[test]
fn special_files_are_never_opened() {
    let mut guest = Guest::new();
    let make = |name: &str, kind, device| rustix::fs::mknodat(CWD, guest.host(name), kind, Mode::RUSR, device).unwrap();
    make("fifo", FileType::Fifo, 0);
    make("zero", FileType::CharacterDevice, rustix::fs::makedev(1, 5));
    make("loop", FileType::BlockDevice, rustix::fs::makedev(7, 0));
    let _listener = UnixListener::bind(guest.host("socket")).unwrap();
    symlink("nowhere", guest.host("dangling")).unwrap();
    for name in ["fifo", "zero", "loop", "socket", "dangling"] {
        let refused = if name == "dangling" { libc::ELOOP } else { libc::ENXIO };
        let node = guest.lookup(guest.root, name).unwrap().nodeid;
        for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR | libc::O_TRUNC, libc::O_PATH] {
            assert_eq!(guest.open(node, flags).map(|open| open.fh), Err(refused), "{name}");
        }
        assert_eq!(guest.create(name, libc::O_RDWR, 0o644).map(|(_, open)| open.fh), Err(refused), "{name}");
        assert_eq!(guest.create(name, libc::O_RDWR | libc::O_EXCL, 0o644).map(|(_, open)| open.fh), Err(libc::EEXIST));
        let truncate = SetattrIn { valid: fattr::SIZE, ..SetattrIn::default() };
        assert_eq!(guest.setattr(node, truncate).map(|attr| attr.size), Err(libc::EINVAL));
        assert_eq!(guest.call(op::OPENDIR, node, &[&[0; 8]]), Err(libc::ENOTDIR));
        assert_eq!(guest.call(op::SYNCFS, node, &[&[0; 8]]), Err(libc::EINVAL));
    }
    assert!(!guest.host("nowhere").exists());
}

#[test]
fn read_only_shares_cannot_be_changed() {
    let mut guest = Guest::with(Limits { inodes: 1000, handles: 100 }, true);
    std::fs::write(guest.host("good"), "text").unwrap();
    let before = tree_state(&guest.host(""));
    let file = guest.lookup(guest.root, "good").unwrap().nodeid;
    let changes = requests_with_name(&guest, &nul("fresh")).into_iter().filter(|(opcode, _)| *opcode != op::LOOKUP);
    for (opcode, body) in changes.collect::<Vec<_>>() {
        assert_eq!(guest.call(opcode, guest.root, &[&body]), Err(libc::EROFS), "{opcode}");
    }
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(guest.open(file, flags).map(|open| open.fh), Err(libc::EROFS));
    }
    for valid in [fattr::MODE, fattr::UID, fattr::SIZE, fattr::MTIME] {
        let args = SetattrIn { valid, ..SetattrIn::default() };
        assert_eq!(guest.setattr(file, args).map(|attr| attr.uid), Err(libc::EROFS));
    }
    let xattr = [SetxattrIn { size: 1, ..SetxattrIn::default() }.as_bytes(), &nul("user.x"), b"x"].concat();
    assert_eq!(guest.call(op::SETXATTR, file, &[&xattr]), Err(libc::EROFS));
    assert_eq!(guest.call(op::REMOVEXATTR, file, &[&nul("user.x")]), Err(libc::EROFS));
    let create = CreateIn { flags: WRITE_ONLY, mode: 0o644, ..CreateIn::default() };
    assert_eq!(guest.call(op::TMPFILE, guest.root, &[create.as_bytes(), &nul("#1")]), Err(libc::EROFS));
    let open = guest.open(file, libc::O_RDONLY).unwrap();
    assert_eq!(guest.write(file, open.fh, 0, b"x", 0), Err(libc::EBADF));
    let allocate = FallocateIn { fh: open.fh, length: 10, ..FallocateIn::default() };
    assert_eq!(guest.call(op::FALLOCATE, file, &[allocate.as_bytes()]), Err(libc::EBADF));
    let size = SetattrIn { valid: fattr::SIZE | fattr::FH, fh: open.fh, ..SetattrIn::default() };
    assert_eq!(guest.setattr(file, size).map(|attr| attr.size), Err(libc::EROFS));
    assert_eq!(guest.read(file, open.fh, 0, 100).unwrap(), b"text");
    assert_eq!(tree_state(&guest.host("")), before);
}

#[test]
fn synthetic_directories_cannot_be_changed() {
    let mut guest = Guest::new();
    let container = guest.lookup(ROOT_ID, "c").unwrap().nodeid;
    for node in [ROOT_ID, container] {
        let changes = requests_with_name(&guest, &nul("fresh")).into_iter().filter(|(opcode, _)| *opcode != op::LOOKUP);
        for (opcode, body) in changes.collect::<Vec<_>>() {
            assert_eq!(guest.call(opcode, node, &[&body]), Err(libc::EROFS), "{opcode}");
        }
        assert_eq!(guest.setattr(node, SetattrIn::default()).map(|attr| attr.uid), Err(libc::EROFS));
        guest.call(op::STATFS, node, &[]).unwrap();
        guest.call(op::SYNCFS, node, &[&[0; 8]]).unwrap();
        let get = GetxattrIn { size: 100, padding: 0 };
        assert_eq!(guest.call(op::GETXATTR, node, &[get.as_bytes(), &nul("user.x")]), Err(libc::ENODATA));
        assert_eq!(guest.call(op::LISTXATTR, node, &[get.as_bytes()]), Ok(Vec::new()));
        guest.ask::<StatxOut>(op::STATX, node, &StatxIn::default(), &[]).unwrap();
    }
}

#[test]
fn random_requests_change_nothing_outside_the_share() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("file"), "outside").unwrap();
    let mut guest = Guest::new();
    symlink(outside.path(), guest.host("out")).unwrap();
    for name in ["a", "b"] {
        std::fs::write(guest.host(name), name).unwrap();
        guest.lookup(guest.root, name).unwrap();
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut seen = BTreeSet::new();
    let words: [&[u8]; 6] = [b"out\0", b"a\0", b"b\0", b"../file\0", b"user.x\0", b"\0"];
    for _ in 0..20_000 {
        let opcode = u32::try_from(random.below(54)).unwrap();
        // SYNCFS takes long, because it writes back the whole file system. The others end the session.
        if [op::SYNCFS, op::INIT, op::DESTROY].contains(&opcode) {
            continue;
        }
        let mut body: Vec<u8> = Vec::new();
        for _ in 0..random.below(6) {
            // Small numbers are more often valid.
            let number = if random.below(2) == 0 { random.below(9) } else { random.next() };
            body.extend(number.to_ne_bytes());
        }
        for _ in 0..random.below(3) {
            body.extend(words[usize::try_from(random.below(6)).unwrap()]);
        }
        let header = InHeader { uid: 0, gid: 0, total_extlen: 0, ..guest.header(opcode, random.below(12), body.len()) };
        let mut space = vec![0; usize::try_from(random.below(5000)).unwrap()];
        let length = guest.raw(&[header.as_bytes(), &body], &mut space);
        assert!(length <= space.len());
        if length >= OUT_HEADER {
            let error = OutHeader::read_from_prefix(&space).unwrap().0.error;
            seen.insert((opcode, error == 0));
        }
    }
    assert!(seen.iter().filter(|(_, good)| *good).count() > 10, "some requests are valid: {seen:?}");
    assert_eq!(std::fs::read(outside.path().join("file")).unwrap(), b"outside");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
}
