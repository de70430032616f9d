//! Mounts below a share that are a view of the host's kernel.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use zerocopy::IntoBytes;

use super::guest::{Guest, nul, open_path};
use crate::config::ShareOptions;
use crate::fs::protocol::wire::*;

/// Runs `test` on a thread with mounts of its own, with a guest whose share has a proc on `proc`, a namespace on the file
/// `namespace`, and a tmpfs on `data`.
fn with_mounts(test: impl FnOnce(&mut Guest) + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let mut guest = Guest::new();
        for name in ["proc", "data"] {
            std::fs::create_dir(guest.host(name)).unwrap();
        }
        std::fs::write(guest.host("namespace"), "").unwrap();
        mount(Some("proc"), &guest.host("proc"), Some("proc"), MsFlags::empty(), none).unwrap();
        mount(Some("data"), &guest.host("data"), Some("tmpfs"), MsFlags::empty(), none).unwrap();
        mount(Some("/proc/self/ns/uts"), &guest.host("namespace"), none, MsFlags::MS_BIND, none).unwrap();
        std::fs::write(guest.host("data/file"), "data").unwrap();
        test(&mut guest);
        unmount(&guest, &["proc", "data", "namespace"]);
    });
    thread.join().unwrap();
}

/// Unmounts what a test has mounted, so that the guest's directory can be removed.
fn unmount(guest: &Guest, names: &[&str]) {
    names.iter().for_each(|name| umount2(&guest.host(name), MntFlags::MNT_DETACH).unwrap());
}

/// Adds the same directory as a share that follows the host's mounts. Returns the node id of its root.
fn add_following(guest: &mut Guest, name: &str, path: &Path) -> u64 {
    let options = ShareOptions { follows_host: true, ..ShareOptions::default() };
    guest.shares.add(&format!("c/{name}"), open_path(path), options).unwrap();
    let container = guest.lookup(ROOT_ID, "c").unwrap().nodeid;
    guest.lookup(container, name).unwrap().nodeid
}

fn assert_empty(guest: &mut Guest, directory: &EntryOut) {
    let node = directory.nodeid;
    let expected = (libc::S_IFDIR | 0o555, 2, ATTR_SUBMOUNT);
    assert_eq!((directory.attr.mode, directory.attr.nlink, directory.attr.flags), expected);
    for name in ["self", "1", "kcore", "sys", "stat"] {
        assert_eq!(guest.lookup(node, name).map(|entry| entry.nodeid), Err(libc::ENOENT), "{name}");
    }
    for opcode in [op::READDIR, op::READDIRPLUS] {
        let names: Vec<_> = guest.list(opcode, node, 4096).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, [".", ".."]);
    }
    let attr = guest.ask::<AttrOut>(op::GETATTR, node, &GetattrIn::default(), &[]).unwrap().attr;
    assert_eq!((attr.mode, attr.nlink, attr.size, attr.mtime), (libc::S_IFDIR | 0o555, 2, 0, 0));
    let statx: StatxOut = guest.ask(op::STATX, node, &StatxIn::default(), &[]).unwrap();
    assert_eq!((u32::from(statx.mode), statx.nlink), (libc::S_IFDIR | 0o555, 2));
    let statfs: StatfsOut = guest.ask(op::STATFS, node, &[0_u8; 0], &[]).unwrap();
    assert_eq!((statfs.blocks, statfs.files), (0, 0));
    let get = GetxattrIn { size: 100, padding: 0 };
    assert_eq!(guest.call(op::GETXATTR, node, &[get.as_bytes(), &nul("user.x")]), Err(libc::ENODATA));
    assert_eq!(guest.call(op::LISTXATTR, node, &[get.as_bytes()]), Ok(Vec::new()));
    guest.call(op::SYNCFS, node, &[&[0; 8]]).unwrap();
}

fn assert_unchangeable(guest: &mut Guest, node: u64) {
    let create = CreateIn { flags: libc::O_RDWR.cast_unsigned(), mode: 0o644, ..CreateIn::default() };
    let xattr = [SetxattrIn { size: 1, ..SetxattrIn::default() }.as_bytes(), &nul("user.x"), b"x"].concat();
    let file = guest.create("outside", libc::O_RDWR, 0o644).unwrap().0.nodeid;
    let (link, rename) = (LinkIn { oldnodeid: file }, RenameIn { newdir: node });
    let changes = [
        (op::MKDIR, node, [MkdirIn { mode: 0o755, umask: 0 }.as_bytes(), &nul("x")].concat()),
        (op::CREATE, node, [create.as_bytes(), &nul("x")].concat()),
        (op::TMPFILE, node, [create.as_bytes(), &nul("#1")].concat()),
        (op::SYMLINK, node, [nul("x"), nul("y")].concat()),
        (op::LINK, node, [link.as_bytes(), &nul("x")].concat()),
        (op::LINK, guest.root, [LinkIn { oldnodeid: node }.as_bytes(), &nul("x")].concat()),
        (op::UNLINK, node, nul("stat")),
        (op::RENAME, guest.root, [rename.as_bytes(), &nul("outside"), &nul("x")].concat()),
        (op::SETXATTR, node, xattr),
        (op::REMOVEXATTR, node, nul("user.x")),
        (op::OPEN, node, OpenIn::default().as_bytes().to_vec()),
    ];
    for (opcode, at, body) in changes {
        assert_eq!(guest.call(opcode, at, &[&body]), Err(libc::EROFS), "{opcode}");
    }
    let chmod = SetattrIn { valid: fattr::MODE, mode: 0o777, ..SetattrIn::default() };
    assert_eq!(guest.setattr(node, chmod).map(|attr| attr.mode), Err(libc::EROFS));
}

#[test]
fn a_view_of_the_hosts_kernel_is_an_empty_directory_that_cannot_be_changed() {
    with_mounts(|guest| {
        for follows_host in [false, true] {
            let directory = guest.host("");
            let root = if follows_host { add_following(guest, "follows", &directory) } else { guest.root };
            let proc = guest.lookup(root, "proc").unwrap();
            assert_empty(guest, &proc);
            assert_unchangeable(guest, proc.nodeid);
            guest.forget(proc.nodeid, 1);
            let listed = guest.list(op::READDIRPLUS, root, 4096);
            let node = listed.iter().find(|(name, _)| name == "proc").unwrap().1;
            assert_ne!(node, 0);
            assert_eq!(guest.lookup(node, "self").map(|entry| entry.nodeid), Err(libc::ENOENT), "found by READDIRPLUS");
            std::fs::remove_file(guest.host("outside")).unwrap();
        }
    });
}

#[test]
fn a_file_of_a_view_of_the_hosts_kernel_is_not_accessible_and_other_mounts_are() {
    with_mounts(|guest| {
        let directory = guest.host("");
        for root in [guest.root, add_following(guest, "follows", &directory)] {
            assert_eq!(guest.lookup(root, "namespace").map(|entry| entry.nodeid), Err(libc::EACCES));
            let names: Vec<_> = guest.list(op::READDIRPLUS, root, 4096);
            assert!(names.contains(&("namespace".into(), 0)), "listed without an inode: {names:?}");
            let data = guest.lookup(root, "data").unwrap();
            assert_eq!(data.attr.flags, ATTR_SUBMOUNT);
            let file = guest.lookup(data.nodeid, "file").unwrap().nodeid;
            let open = guest.open(file, libc::O_RDONLY).unwrap();
            assert_eq!(guest.read(file, open.fh, 0, 100).unwrap(), b"data");
        }
        assert_eq!(guest.create("namespace", libc::O_RDWR, 0o644).map(|(entry, _)| entry.nodeid), Err(libc::EACCES));
    });
}

#[test]
fn a_restored_view_of_the_hosts_kernel_is_empty() {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let mut guest = Guest::new();
        std::fs::create_dir_all(guest.host("later/1")).unwrap();
        std::fs::write(guest.host("later/stat"), "data").unwrap();
        let later = guest.lookup(guest.root, "later").unwrap().nodeid;
        let inner = guest.lookup(later, "1").unwrap().nodeid;
        let file = guest.lookup(later, "stat").unwrap().nodeid;
        let listing: OpenOut = guest.ask(op::OPENDIR, later, &OpenIn::default(), &[]).unwrap();
        let saved = guest.server.save();
        // After the state was saved, the same paths lead into a proc.
        mount(Some("proc"), &guest.host("later"), Some("proc"), MsFlags::empty(), none).unwrap();
        let mut guest = guest.restored_from(&saved).unwrap();
        let args = ReadIn { fh: listing.fh, size: 4096, ..ReadIn::default() };
        let names = guest.call(op::READDIR, later, &[args.as_bytes()]).unwrap();
        assert_eq!(names.len(), 2 * aligned(size_of::<Dirent>() + 2), "only . and ..");
        for node in [later, inner] {
            assert_eq!(guest.lookup(node, "status").map(|entry| entry.nodeid), Err(libc::ENOENT));
        }
        assert_eq!(guest.open(file, libc::O_RDONLY).map(|open| open.fh), Err(libc::ESTALE));
        unmount(&guest, &["later"]);
    });
    thread.join().unwrap();
}
