//! Creates device nodes for the file server. The VMM may only name directories that it has: those of its shares. On their mounts no
//! device can be opened. On other mounts no node is made, so that a VMM that was taken over gives no process of the host a device.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, mknodat, umask};
use nix::sys::statvfs::{FsFlags, fstatvfs};
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
    check_mount(directory)?;
    let _ids = FsIds::assume(node);
    umask(Mode::from_bits_truncate(node.umask));
    let mode = Mode::from_bits_truncate(node.mode);
    mknodat(directory, node.name.as_slice(), kind, mode, decode_device(node.device))
}

/// Refuses a directory on a mount that is read-only, or on which devices can be opened. Clones of mounts for shares are neither, unless
/// the volume is read-only; a mount that the host adds below one later may be.
fn check_mount(directory: &OwnedFd) -> Result<(), Errno> {
    let flags = fstatvfs(directory)?.flags();
    if flags.contains(FsFlags::ST_RDONLY) {
        return Err(Errno::EROFS);
    }
    if flags.contains(FsFlags::ST_NODEV) { Ok(()) } else { Err(Errno::EPERM) }
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
    use std::fs::File;

    use nix::libc;
    use rustix::fs::{AtFlags, FileType, statat};
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

    use super::*;

    /// The root directory of a tmpfs that is mounted nowhere.
    fn mounted(attributes: MountAttrFlags) -> OwnedFd {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_create(&context).unwrap();
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).unwrap()
    }

    fn node(mode: u32) -> MakeNode {
        MakeNode { uid: 7, gid: 8, umask: 0o22, mode, device: 0x103, name: b"null".to_vec() }
    }

    #[test]
    fn only_device_nodes_are_made_with_their_owner() {
        let fd = mounted(MountAttrFlags::MOUNT_ATTR_NODEV);
        let directory = fd.try_clone().unwrap();
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
        let made = statat(&directory, "null", AtFlags::SYMLINK_NOFOLLOW).unwrap();
        assert_eq!(FileType::from_raw_mode(made.st_mode), FileType::CharacterDevice);
        assert_eq!((made.st_uid, made.st_gid, made.st_mode & 0o777), (7, 8, 0o644));
        assert_eq!(made.st_rdev, decode_device(0x103));
    }

    #[test]
    fn no_node_is_made_where_devices_can_be_opened_or_nothing_be_written() {
        let made = |directory: &OwnedFd| make(&node(libc::S_IFCHR | 0o666), directory);
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(made(&mounted(MountAttrFlags::empty())), Err(Errno::EPERM));
        assert_eq!(made(&File::open(directory.path()).unwrap().into()), Err(Errno::EPERM));
        let read_only = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_RDONLY;
        assert_eq!(made(&mounted(read_only)), Err(Errno::EROFS));
    }
}
