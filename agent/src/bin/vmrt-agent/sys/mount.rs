//! `mount_setattr(2)`.

use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::{Result, check};

/// The kernel's `struct mount_attr`: changes to the attributes of a mount.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub(crate) struct MountAttr {
    /// `MOUNT_ATTR_*` to set.
    pub(crate) set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub(crate) clear: u64,
    /// One of `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, or 0 to leave it.
    pub(crate) propagation: u64,
    userns_fd: u64,
}

impl MountAttr {
    /// A change of attribute flags.
    pub(crate) fn flags(set: u64, clear: u64) -> Self {
        Self { set, clear, ..Self::default() }
    }

    /// A change of propagation.
    pub(crate) fn propagation(propagation: u64) -> Self {
        Self { propagation, ..Self::default() }
    }

    /// An id mapping by that of a user namespace. Only for a mount that is not attached yet.
    pub(crate) fn id_mapping(namespace: BorrowedFd<'_>) -> Self {
        let userns_fd = namespace.as_raw_fd().cast_unsigned().into();
        Self { set: libc::MOUNT_ATTR_IDMAP, userns_fd, ..Self::default() }
    }
}

/// The attribute of a read-only mount.
pub(crate) const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;

/// Makes the mount that contains `mount` read-only, with `recursive` also the mounts below it.
pub(crate) fn make_read_only(mount: BorrowedFd<'_>, recursive: bool) -> Result<()> {
    mount_setattr(mount, recursive, &MountAttr::flags(READ_ONLY, 0))
}

/// Changes the attributes of the mount that contains `mount`, with `recursive` also those of the mounts below it.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> Result<()> {
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    let (flags, empty) = (libc::AT_EMPTY_PATH | recursive, c"");
    // SAFETY: the path ends in NUL, and `attr` is a valid mount_attr of the given length.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            empty.as_ptr(),
            flags,
            ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}
