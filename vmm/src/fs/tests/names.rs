//! Requests for names.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use zerocopy::IntoBytes;

use super::guest::{Guest, nul, open_path};
use crate::config::ShareOptions;
use crate::fs::protocol::wire::*;

#[test]
fn shares_are_listed_and_looked_up() {
    let mut guest = Guest::new();
    assert_eq!(guest.lookup(ROOT_ID, "none").map(|entry| entry.nodeid), Err(libc::ENOENT));
    let container = guest.lookup(ROOT_ID, "c").unwrap();
    assert_eq!(container.attr.mode, libc::S_IFDIR | 0o555);
    let listed: Vec<_> = guest.list(op::READDIR, ROOT_ID, 4096).into_iter().map(|(name, _)| name).collect();
    assert_eq!(listed, [".", "..", "c"]);
    let listed = guest.list(op::READDIRPLUS, container.nodeid, 4096);
    assert_eq!(listed.last().unwrap().0, "share");
    let root = guest.lookup(container.nodeid, "share").unwrap();
    assert_eq!((root.nodeid, root.attr.flags), (guest.root, ATTR_SUBMOUNT));
}

#[test]
fn shares_are_added_and_removed() {
    let mut guest = Guest::new();
    std::fs::write(guest.host("file"), "one file").unwrap();
    guest
        .shares
        .add("d/file", open_path(&guest.host("file")), ShareOptions { read_only: true, ..ShareOptions::default() })
        .unwrap();
    let container = guest.lookup(ROOT_ID, "d").unwrap().nodeid;
    let file = guest.lookup(container, "file").unwrap();
    assert_eq!((file.attr.mode & libc::S_IFMT, file.attr.flags), (libc::S_IFREG, 0));
    let open = guest.open(file.nodeid, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(file.nodeid, open.fh, 0, 100).unwrap(), b"one file");
    guest.shares.remove("d/file").unwrap();
    assert_eq!(guest.read(file.nodeid, open.fh, 0, 100), Err(libc::ESTALE));
    assert_eq!(guest.open(file.nodeid, libc::O_RDONLY).map(|open| open.fh), Err(libc::ESTALE));
    assert_eq!(guest.lookup(container, "file").map(|entry| entry.nodeid), Err(libc::ENOENT));
}

#[test]
fn shares_that_replace_removed_ones_are_found_immediately() {
    let mut guest = Guest::new();
    let add = |guest: &Guest| guest.shares.add("d/root", open_path(&guest.host("")), ShareOptions::default()).unwrap();
    let find = |guest: &mut Guest| {
        let container = guest.lookup(ROOT_ID, "d").unwrap();
        let root = guest.lookup(container.nodeid, "root").unwrap();
        assert_eq!((container.entry_valid, root.entry_valid), (0, 0), "the guest does not cache names of shares");
        (container.nodeid, root.nodeid)
    };
    add(&guest);
    let before = find(&mut guest);
    guest.shares.remove_container("d");
    guest.shares.remove_container("none");
    assert_eq!(guest.lookup(ROOT_ID, "d").map(|entry| entry.nodeid), Err(libc::ENOENT));
    add(&guest);
    let after = find(&mut guest);
    assert!(before.0 != after.0 && before.1 != after.1, "{before:?} {after:?}");
    assert_eq!(guest.open(before.1, libc::O_RDONLY).map(|open| open.fh), Err(libc::ESTALE));
}

#[test]
fn entries_are_created_renamed_and_removed() {
    let mut guest = Guest::new();
    let root = guest.root;
    let entry: EntryOut = guest.ask(op::MKDIR, root, &MkdirIn { mode: 0o777, umask: 0o027 }, &nul("dir")).unwrap();
    assert_eq!(entry.attr.mode, libc::S_IFDIR | 0o750);
    let fifo = MknodIn { mode: libc::S_IFIFO | 0o644, ..MknodIn::default() };
    let entry: EntryOut = guest.ask(op::MKNOD, entry.nodeid, &fifo, &nul("fifo")).unwrap();
    assert_eq!(entry.attr.mode, libc::S_IFIFO | 0o644);
    assert!(guest.host("dir/fifo").metadata().unwrap().file_type().is_fifo());
    let device = MknodIn {
        mode: libc::S_IFCHR | 0o600,
        rdev: (0x12345 << 12 & 0xfff0_0000) | (7 << 8) | 0x45,
        ..MknodIn::default()
    };
    let entry: EntryOut = guest.ask(op::MKNOD, root, &device, &nul("null")).unwrap();
    assert_eq!(entry.attr.rdev, device.rdev);
    let entry: EntryOut =
        guest.ask(op::SYMLINK, root, &[0_u8; 0], &[nul("link"), nul("/etc/passwd")].concat()).unwrap();
    assert_eq!(guest.call(op::READLINK, entry.nodeid, &[]).unwrap(), b"/etc/passwd");
    let (file, _) = guest.create("file", libc::O_RDWR, 0o666).unwrap();
    let linked: EntryOut = guest.ask(op::LINK, root, &LinkIn { oldnodeid: file.nodeid }, &nul("dir2")).unwrap();
    assert_eq!((linked.nodeid, linked.attr.nlink), (file.nodeid, 2));
    let rename = Rename2In { newdir: root, flags: libc::RENAME_NOREPLACE, padding: 0 };
    let names = [nul("file"), nul("dir2")].concat();
    assert_eq!(guest.call(op::RENAME2, root, &[rename.as_bytes(), &names]), Err(libc::EEXIST));
    let names = [nul("file"), nul("moved")].concat();
    guest.call(op::RENAME, root, &[RenameIn { newdir: root }.as_bytes(), &names]).unwrap();
    assert!(guest.host("moved").exists());
    assert_eq!(guest.call(op::RMDIR, root, &[&nul("dir")]), Err(libc::ENOTEMPTY));
    assert_eq!(guest.call(op::UNLINK, root, &[&nul("dir")]), Err(libc::EISDIR));
    for name in ["moved", "dir2", "null", "link"] {
        guest.call(op::UNLINK, root, &[&nul(name)]).unwrap();
    }
    assert_eq!(std::fs::read_dir(guest.host("")).unwrap().count(), 1);
}

#[test]
fn directories_are_listed_completely() {
    let mut guest = Guest::new();
    for number in 0..300 {
        std::fs::write(guest.host(&format!("file-{number}")), "").unwrap();
    }
    for (opcode, size) in [(op::READDIR, 4096), (op::READDIRPLUS, 4096), (op::READDIRPLUS, 200), (op::READDIR, 1 << 20)]
    {
        let mut listed = guest.list(opcode, guest.root, size);
        listed.sort();
        listed.dedup();
        assert_eq!(listed.len(), 302);
        let with_inode = listed.iter().filter(|(_, node)| *node != 0).count();
        assert_eq!(with_inode, if opcode == op::READDIRPLUS { 300 } else { 0 });
    }
}

#[test]
fn new_files_get_the_callers_owner_and_the_directorys_group() {
    let mut guest = Guest::new();
    let root = guest.root;
    (guest.uid, guest.gid) = (1000, 1001);
    let (file, _) = guest.create("plain", libc::O_RDWR, 0o666).unwrap();
    assert_eq!((file.attr.uid, file.attr.gid, file.attr.mode & 0o7777), (1000, 1001, 0o644));
    std::os::unix::fs::chown(guest.host(""), Some(1000), Some(2000)).unwrap();
    std::fs::set_permissions(guest.host(""), PermissionsExt::from_mode(0o2775)).unwrap();
    let (file, _) = guest.create("inherits", libc::O_RDWR, 0o2775).unwrap();
    assert_eq!((file.attr.gid, file.attr.mode & 0o7777), (2000, 0o755), "not in the group: no setgid");
    let mkdir = MkdirIn { mode: 0o755, umask: 0 };
    let entry: EntryOut = guest.ask(op::MKDIR, root, &mkdir, &nul("dir")).unwrap();
    assert_eq!((entry.attr.gid, entry.attr.mode & 0o7777), (2000, 0o2755), "directories inherit setgid");
    for word in [24, EXT_GROUPS, 1, 2000, 0, 0] {
        guest.extensions.extend(word.to_ne_bytes());
    }
    let (file, _) = guest.create("member", libc::O_RDWR, 0o2775).unwrap();
    assert_eq!((file.attr.gid, file.attr.mode & 0o7777), (2000, 0o2755), "in the group as a supplementary group");
    guest.extensions.clear();
    let entry: EntryOut = guest.ask(op::SYMLINK, root, &[0_u8; 0], &[nul("link"), nul("x")].concat()).unwrap();
    assert_eq!(entry.attr.uid, 1000);
    let stat = std::fs::metadata(guest.host("member")).unwrap();
    assert_eq!((stat.uid(), stat.gid()), (1000, 2000));
}

#[test]
fn links_and_renames_across_shares_are_rejected() {
    let mut guest = Guest::new();
    std::fs::create_dir(guest.host("other")).unwrap();
    std::fs::write(guest.host("file"), "").unwrap();
    symlink("/", guest.host("slash")).unwrap();
    guest.shares.add("c/other", open_path(&guest.host("other")), ShareOptions::default()).unwrap();
    let container = guest.lookup(ROOT_ID, "c").unwrap().nodeid;
    let other = guest.lookup(container, "other").unwrap().nodeid;
    let file = guest.lookup(guest.root, "file").unwrap().nodeid;
    assert_eq!(guest.call(op::LINK, other, &[LinkIn { oldnodeid: file }.as_bytes(), &nul("file")]), Err(libc::EXDEV));
    let names = [nul("file"), nul("file")].concat();
    assert_eq!(guest.call(op::RENAME, guest.root, &[RenameIn { newdir: other }.as_bytes(), &names]), Err(libc::EXDEV));
    let slash = guest.lookup(guest.root, "slash").unwrap();
    assert_eq!(slash.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(guest.lookup(slash.nodeid, "etc").map(|entry| entry.nodeid), Err(libc::ENOTDIR));
}
