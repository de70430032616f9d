//! Requests for files and attributes.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, SystemTime};

use zerocopy::{FromBytes, IntoBytes};

use super::guest::{Guest, nul};
use crate::fs::FsError;
use crate::fs::protocol::wire::*;

#[test]
fn files_are_read_and_written() {
    let mut guest = Guest::new();
    let (file, open) = guest.create("file", libc::O_RDWR, 0o644).unwrap();
    let data: Vec<u8> = (0..1 << 20).map(|byte: u32| byte.to_le_bytes()[1]).collect();
    assert_eq!(guest.write(file.nodeid, open.fh, 5, &data, 0), Ok(MAX_DATA));
    assert_eq!(guest.read(file.nodeid, open.fh, 5, MAX_DATA).unwrap(), data);
    assert_eq!(guest.read(file.nodeid, open.fh, 1 << 20, 100).unwrap().len(), 5, "up to the end of the file");
    assert_eq!(guest.read(file.nodeid, open.fh, u64::MAX, 100), Err(libc::EINVAL));
    let append = WriteIn { fh: open.fh, size: 3, flags: libc::O_APPEND as u32, ..WriteIn::default() };
    let out: WriteOut = guest.ask(op::WRITE, file.nodeid, &append, b"end").unwrap();
    assert_eq!(out.size, 3);
    assert!(std::fs::read(guest.host("file")).unwrap().ends_with(b"end"));
    for opcode in [op::FSYNC, op::RELEASE] {
        guest.call(opcode, file.nodeid, &[ReleaseIn { fh: open.fh, ..ReleaseIn::default() }.as_bytes()]).unwrap();
    }
    assert_eq!(guest.read(file.nodeid, open.fh, 0, 1), Err(libc::EBADF));
}

#[test]
fn fallocate_lseek_and_copy_file_range_work() {
    let mut guest = Guest::new();
    let (file, open) = guest.create("file", libc::O_RDWR, 0o644).unwrap();
    let args = FallocateIn { fh: open.fh, length: 1 << 20, ..FallocateIn::default() };
    guest.call(op::FALLOCATE, file.nodeid, &[args.as_bytes()]).unwrap();
    assert_eq!(guest.host("file").metadata().unwrap().size(), 1 << 20);
    let size = SetattrIn { valid: fattr::SIZE | fattr::FH, fh: open.fh, size: 0, ..SetattrIn::default() };
    guest.setattr(file.nodeid, size).unwrap();
    guest.write(file.nodeid, open.fh, 1 << 20, b"data", 0).unwrap();
    let seek = |whence: i32| LseekIn { fh: open.fh, whence: whence.try_into().unwrap(), ..LseekIn::default() };
    assert_eq!(guest.ask::<LseekOut>(op::LSEEK, file.nodeid, &seek(libc::SEEK_DATA), &[]).unwrap().offset, 1 << 20);
    assert_eq!(guest.ask::<LseekOut>(op::LSEEK, file.nodeid, &seek(libc::SEEK_HOLE), &[]).unwrap().offset, 0);
    assert_eq!(guest.call(op::LSEEK, file.nodeid, &[seek(libc::SEEK_CUR).as_bytes()]), Err(libc::EINVAL));
    let (copy, target) = guest.create("copy", libc::O_RDWR, 0o644).unwrap();
    let args = CopyFileRangeIn {
        fh_in: open.fh,
        off_in: 1 << 20,
        nodeid_out: copy.nodeid,
        fh_out: target.fh,
        off_out: 1,
        len: 100,
        flags: 0,
    };
    assert_eq!(guest.ask::<WriteOut>(op::COPY_FILE_RANGE, file.nodeid, &args, &[]).unwrap().size, 4);
    assert_eq!(std::fs::read(guest.host("copy")).unwrap(), b"\0data");
}

#[test]
fn attributes_are_set_and_read() {
    let mut guest = Guest::new();
    let (file, open) = guest.create("file", libc::O_RDWR, 0o644).unwrap();
    let args = SetattrIn {
        valid: fattr::UID | fattr::GID | fattr::MODE | fattr::MTIME | fattr::ATIME | fattr::ATIME_NOW | fattr::SIZE,
        uid: 12,
        gid: 13,
        mode: 0o4711,
        mtime: 1_000_000_000,
        mtimensec: 5,
        size: 77,
        ..SetattrIn::default()
    };
    let attr = guest.setattr(file.nodeid, args).unwrap();
    assert_eq!((attr.uid, attr.gid, attr.size, attr.mtime, attr.mtimensec), (12, 13, 77, 1_000_000_000, 5));
    assert_eq!(attr.mode & 0o7777, 0o4711);
    for getattr in [GetattrIn::default(), GetattrIn { getattr_flags: GETATTR_FH, dummy: 0, fh: open.fh }] {
        assert_eq!(guest.ask::<AttrOut>(op::GETATTR, file.nodeid, &getattr, &[]).unwrap().attr.size, 77);
    }
    let statx: StatxOut = guest.ask(op::STATX, file.nodeid, &StatxIn::default(), &[]).unwrap();
    assert_eq!((statx.size, statx.uid, statx.mtime.tv_sec), (77, 12, 1_000_000_000));
    assert!(statx.btime.tv_sec > 1_000_000_000);
    let statfs: StatfsOut = guest.ask(op::STATFS, file.nodeid, &[0_u8; 0], &[]).unwrap();
    assert!(statfs.blocks > 0 && statfs.namelen >= 255);
    let nobody = SetattrIn { valid: fattr::UID, uid: u32::MAX, ..SetattrIn::default() };
    assert_eq!(guest.setattr(file.nodeid, nobody).map(|attr| attr.uid), Err(libc::EINVAL));
    let directory = SetattrIn { valid: fattr::SIZE, ..SetattrIn::default() };
    assert_eq!(guest.setattr(guest.root, directory).map(|attr| attr.uid), Err(libc::EISDIR));
}

#[test]
fn unlinked_files_stay_open() {
    let mut guest = Guest::new();
    let (file, open) = guest.create("file", libc::O_RDWR, 0o644).unwrap();
    guest.call(op::UNLINK, guest.root, &[&nul("file")]).unwrap();
    guest.write(file.nodeid, open.fh, 0, b"still here", 0).unwrap();
    assert_eq!(guest.read(file.nodeid, open.fh, 0, 100).unwrap(), b"still here");
    let attr = guest.ask::<AttrOut>(op::GETATTR, file.nodeid, &GetattrIn::default(), &[]).unwrap().attr;
    assert_eq!((attr.nlink, attr.size), (0, 10));
}

#[test]
fn temporary_files_have_no_name_until_they_are_linked() {
    let mut guest = Guest::new();
    let args = CreateIn { flags: libc::O_RDWR as u32, mode: 0o640, umask: 0, open_flags: 0 };
    let body = guest.call(op::TMPFILE, guest.root, &[args.as_bytes(), &nul("#1")]).unwrap();
    let (entry, rest) = EntryOut::read_from_prefix(&body).unwrap();
    let open = OpenOut::read_from_prefix(rest).unwrap().0;
    guest.write(entry.nodeid, open.fh, 0, b"text", 0).unwrap();
    assert_eq!(std::fs::read_dir(guest.host("")).unwrap().count(), 0);
    guest.call(op::LINK, guest.root, &[LinkIn { oldnodeid: entry.nodeid }.as_bytes(), &nul("named")]).unwrap();
    assert_eq!(std::fs::read(guest.host("named")).unwrap(), b"text");
}

#[test]
fn extended_attributes_are_set_listed_and_removed() {
    let mut guest = Guest::new();
    let (file, _) = guest.create("file", libc::O_RDWR, 0o644).unwrap();
    let set = |name: &str, value: &[u8]| {
        let args = SetxattrIn { size: value.len().try_into().unwrap(), ..SetxattrIn::default() };
        [args.as_bytes(), &nul(name), value].concat()
    };
    guest.call(op::SETXATTR, file.nodeid, &[&set("user.colour", b"green")]).unwrap();
    for name in ["security.selinux", "system.other", "user.vmrt.trusted.overlay.opaque"] {
        assert_eq!(guest.call(op::SETXATTR, file.nodeid, &[&set(name, b"x")]), Err(libc::EOPNOTSUPP));
    }
    let get = |size| GetxattrIn { size, padding: 0 };
    let name = nul("user.colour");
    assert_eq!(guest.ask::<GetxattrOut>(op::GETXATTR, file.nodeid, &get(0), &name).unwrap().size, 5);
    assert_eq!(guest.call(op::GETXATTR, file.nodeid, &[get(100).as_bytes(), &name]).unwrap(), b"green");
    assert_eq!(guest.call(op::GETXATTR, file.nodeid, &[get(2).as_bytes(), &name]), Err(libc::ERANGE));
    assert_eq!(guest.call(op::LISTXATTR, file.nodeid, &[get(100).as_bytes()]).unwrap(), b"user.colour\0");
    assert_eq!(guest.call(op::LISTXATTR, file.nodeid, &[get(3).as_bytes()]), Err(libc::ERANGE));
    guest.call(op::REMOVEXATTR, file.nodeid, &[&name]).unwrap();
    assert_eq!(guest.call(op::GETXATTR, file.nodeid, &[get(100).as_bytes(), &name]), Err(libc::ENODATA));
}

/// The guest's `trusted.*` have another name on the host.
#[test]
fn trusted_attributes_of_the_guest_are_separate_from_the_hosts() {
    let mut guest = Guest::new();
    guest.create("file", libc::O_RDWR, 0o644).unwrap();
    let file = guest.lookup(guest.root, "file").unwrap().nodeid;
    let host = guest.host("file");
    let name = nul("trusted.overlay.opaque");
    let args = SetxattrIn { size: 1, ..SetxattrIn::default() };
    guest.call(op::SETXATTR, file, &[args.as_bytes(), &name, b"y"]).unwrap();
    let mut names = [0; 100];
    let length = rustix::fs::listxattr(&host, &mut names).unwrap();
    assert_eq!(&names[..length], b"user.vmrt.trusted.overlay.opaque\0");
    let get = GetxattrIn { size: 100, padding: 0 };
    assert_eq!(guest.call(op::GETXATTR, file, &[get.as_bytes(), &name]).unwrap(), b"y");
    assert_eq!(guest.call(op::LISTXATTR, file, &[get.as_bytes()]).unwrap(), b"trusted.overlay.opaque\0");
    for hidden in ["user.vmrt.trusted.overlay.opaque", "trusted.overlay.redirect"] {
        assert!(guest.call(op::GETXATTR, file, &[get.as_bytes(), &nul(hidden)]).is_err(), "{hidden}");
    }
    guest.call(op::REMOVEXATTR, file, &[&name]).unwrap();
    assert_eq!(rustix::fs::listxattr(&host, &mut names).unwrap(), 0);
}

#[test]
fn an_acl_with_kill_sgid_clears_setgid() {
    let mut guest = Guest::new();
    let (file, _) = guest.create("program", libc::O_RDWR, 0o755).unwrap();
    let host = guest.host("program");
    // ACL version 2: all permissions for the owner, all but writing for the group and others.
    let entries = [(1_u16, 7_u16), (4, 5), (0x20, 5)].map(|(tag, permissions)| [tag, permissions, u16::MAX, u16::MAX]);
    let acl: Vec<u8> = [2_u16, 0].iter().chain(entries.as_flattened()).flat_map(|word| word.to_le_bytes()).collect();
    // If mounts may map ids, such a request does not say who the caller is.
    (guest.uid, guest.gid) = (u32::MAX, u32::MAX);
    let mut set = |setxattr_flags| {
        let args = SetxattrIn { size: 28, setxattr_flags, ..SetxattrIn::default() };
        guest.call(op::SETXATTR, file.nodeid, &[args.as_bytes(), &nul("system.posix_acl_access"), &acl]).unwrap();
        host.metadata().unwrap().mode() & 0o7777
    };
    for group in [0, 7] {
        std::os::unix::fs::chown(&host, None, Some(group)).unwrap();
        std::fs::set_permissions(&host, PermissionsExt::from_mode(0o2755)).unwrap();
        assert_eq!((set(0), set(SETXATTR_ACL_KILL_SGID)), (0o2755, 0o755), "of group {group}");
    }
}

#[test]
fn setuid_setgid_and_file_capabilities_are_cleared() {
    let mut guest = Guest::new();
    let (file, open) = guest.create("program", libc::O_RDWR, 0o755).unwrap();
    let host = guest.host("program");
    let set_privileges = || std::fs::set_permissions(&host, PermissionsExt::from_mode(0o6755)).unwrap();
    let mode = || host.metadata().unwrap().mode() & 0o7777;
    set_privileges();
    guest.write(file.nodeid, open.fh, 0, b"x", 0).unwrap();
    assert_eq!(mode(), 0o6755, "a writer with CAP_FSETID keeps them");
    guest.write(file.nodeid, open.fh, 0, b"x", WRITE_KILL_SUIDGID).unwrap();
    assert_eq!(mode(), 0o755);
    set_privileges();
    let args = SetattrIn { valid: fattr::SIZE | fattr::KILL_SUIDGID, ..SetattrIn::default() };
    guest.setattr(file.nodeid, args).unwrap();
    assert_eq!(mode(), 0o755);
    set_privileges();
    let args = OpenIn { flags: (libc::O_WRONLY | libc::O_TRUNC) as u32, open_flags: OPEN_KILL_SUIDGID };
    guest.ask::<OpenOut>(op::OPEN, file.nodeid, &args, &[]).unwrap();
    assert_eq!(mode(), 0o755);
    set_privileges();
    let allocate = FallocateIn { fh: open.fh, length: 10, ..FallocateIn::default() };
    guest.call(op::FALLOCATE, file.nodeid, &[allocate.as_bytes()]).unwrap();
    assert_eq!(mode(), 0o6755);
    guest.setattr(file.nodeid, SetattrIn::default()).unwrap();
    assert_eq!(mode(), 0o755, "before a change by someone without CAP_FSETID");
    set_privileges();
    guest.setattr(file.nodeid, SetattrIn { valid: fattr::ATIME | fattr::ATIME_NOW, ..SetattrIn::default() }).unwrap();
    assert_eq!(mode(), 0o6755, "the contents do not change");
    guest.setattr(file.nodeid, SetattrIn { valid: fattr::UID, uid: 5, ..SetattrIn::default() }).unwrap();
    assert_eq!(mode(), 0o755);
    // A file capability: version 2, CAP_NET_RAW permitted.
    let capability: Vec<u8> = [0x0200_0000_u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    let args = SetxattrIn { size: 20, ..SetxattrIn::default() };
    guest.call(op::SETXATTR, file.nodeid, &[args.as_bytes(), &nul("security.capability"), &capability]).unwrap();
    guest.write(file.nodeid, open.fh, 0, b"x", 0).unwrap();
    let get = GetxattrIn { size: 100, padding: 0 };
    let left = guest.call(op::GETXATTR, file.nodeid, &[get.as_bytes(), &nul("security.capability")]);
    assert_eq!(left, Err(libc::ENODATA));
}

#[test]
fn the_guest_keeps_its_cache_while_the_file_does_not_change() {
    let mut guest = Guest::new();
    std::fs::write(guest.host("file"), "old").unwrap();
    let set_old_mtime = |path: &std::path::Path| {
        let past = SystemTime::now() - Duration::from_secs(60);
        std::fs::File::options().write(true).open(path).unwrap().set_modified(past).unwrap();
    };
    let file = guest.lookup(guest.root, "file").unwrap().nodeid;
    let keeps_cache = |guest: &mut Guest| guest.open(file, libc::O_RDONLY).unwrap().open_flags & FOPEN_KEEP_CACHE != 0;
    assert!(!keeps_cache(&mut guest), "never opened");
    assert!(!keeps_cache(&mut guest), "changed too recently");
    set_old_mtime(&guest.host("file"));
    std::thread::sleep(Duration::from_millis(2100));
    assert!(!keeps_cache(&mut guest));
    assert!(keeps_cache(&mut guest));
    std::fs::write(guest.host("file"), "new").unwrap();
    set_old_mtime(&guest.host("file"));
    assert!(!keeps_cache(&mut guest), "same size and modification time, but changed");
}

#[test]
fn a_session_is_saved_and_restored() {
    let mut guest = Guest::new();
    std::fs::create_dir(guest.host("dir")).unwrap();
    let directory = guest.lookup(guest.root, "dir").unwrap().nodeid;
    std::fs::write(guest.host("dir/inner"), "inside").unwrap();
    let inner = guest.lookup(directory, "inner").unwrap().nodeid;
    let open = guest.open(inner, libc::O_RDWR).unwrap();
    let listing: OpenOut = guest.ask(op::OPENDIR, directory, &OpenIn::default(), &[]).unwrap();
    let mut guest = guest.restored().unwrap();
    assert_eq!(guest.read(inner, open.fh, 0, 100).unwrap(), b"inside");
    guest.write(inner, open.fh, 0, b"INSIDE", 0).unwrap();
    let args = ReadIn { fh: listing.fh, size: 4096, ..ReadIn::default() };
    assert!(!guest.call(op::READDIR, directory, &[args.as_bytes()]).unwrap().is_empty());
    assert_eq!(guest.lookup(directory, "inner").unwrap().nodeid, inner, "the same node id");
    let (fresh, _) = guest.create("fresh", libc::O_RDWR, 0o600).unwrap();
    assert!(fresh.nodeid > inner, "node ids are not reused");
}

#[test]
fn open_files_without_a_path_cannot_be_restored() {
    let mut guest = Guest::new();
    guest.create("file", libc::O_RDWR, 0o644).unwrap();
    guest.call(op::UNLINK, guest.root, &[&nul("file")]).unwrap();
    assert!(matches!(guest.restored(), Err(FsError::NoPath { .. })));
}
