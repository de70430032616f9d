//! Creates device nodes for the file server. The VMM may only name directories that it has: those of its shares.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, mknodat, umask};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::thread::CapabilitiesSecureBits;
use vmm::helper::{MakeNode, decode_device, send_errno};

/// Serves requests until the VMM ends.
pub(super) fn serve(connection: &OwnedFd) {
    if let Err(errno) = prepare() {
        eprintln!(" WARN device nodes of containers cannot be created: {errno}");
        return;
    }
    loop {
        match MakeNode::receive(connection.as_fd()) {
            Ok(Some((node, directory))) => {
                // If the VMM has ended, the next message says so.
                let _ = send_errno(connection.as_fd(), make(&node, &directory));
            }
            Ok(None) => return,
            Err(error) => {
                eprintln!(" WARN device nodes of containers are no longer created: {error}");
                return;
            }
        }
    }
}

/// Gives the thread a umask of its own, and lets it keep its capabilities while it has the ids of a node's owner.
fn prepare() -> Result<(), Errno> {
    unshare(CloneFlags::CLONE_FS)?;
    rustix::thread::set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)
        .map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}

fn make(node: &MakeNode, directory: &OwnedFd) -> Result<(), Errno> {
    let kind = SFlag::from_bits_truncate(node.mode) & SFlag::S_IFMT;
    if !matches!(kind, SFlag::S_IFCHR | SFlag::S_IFBLK) {
        return Err(Errno::EPERM);
    }
    let _ids = FsIds::assume(node);
    umask(Mode::from_bits_truncate(node.umask));
    let mode = Mode::from_bits_truncate(node.mode);
    mknodat(directory, node.name.as_slice(), kind, mode, decode_device(node.device))
}

/// The file-system ids of a node's owner. Dropping it restores root's.
struct FsIds;

impl FsIds {
    fn assume(node: &MakeNode) -> Self {
        setfsgid(Gid::from_raw(node.gid));
        setfsuid(Uid::from_raw(node.uid));
        Self
    }
}

impl Drop for FsIds {
    fn drop(&mut self) {
        setfsuid(Uid::from_raw(0));
        setfsgid(Gid::from_raw(0));
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    use nix::libc;

    use super::*;

    #[test]
    fn only_device_nodes_are_made_with_their_owner() {
        let directory = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(File::open(directory.path()).unwrap());
        let node = |mode| MakeNode { uid: 7, gid: 8, umask: 0o22, mode, device: 0x103, name: b"null".to_vec() };
        // On a thread of its own: `prepare` changes the thread's credentials.
        std::thread::spawn(move || {
            prepare().unwrap();
            assert_eq!(make(&node(libc::S_IFREG | 0o644), &fd), Err(Errno::EPERM));
            assert_eq!(make(&node(libc::S_IFDIR | 0o755), &fd), Err(Errno::EPERM));
            make(&node(libc::S_IFCHR | 0o666), &fd).unwrap();
            assert_eq!(make(&node(libc::S_IFCHR | 0o666), &fd), Err(Errno::EEXIST));
        })
        .join()
        .unwrap();
        let made = fs::metadata(directory.path().join("null")).unwrap();
        assert!(made.file_type().is_char_device());
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o777, made.rdev()), (7, 8, 0o644, decode_device(0x103)));
    }
}
