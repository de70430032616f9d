//! The FUSE protocol's messages (Linux `include/uapi/linux/fuse.h`, version 7.41).
//!
//! Every structure is plain bytes without padding, which is checked at compile time. So no uninitialized memory leaves
//! the process, and all values from the guest are valid.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The protocol's major version.
pub(crate) const MAJOR: u32 = 7;
/// The newest minor version of the protocol that is supported.
pub(crate) const MINOR: u32 = 41;
/// The oldest minor version that is accepted. The layout of the messages below has not changed since.
pub(crate) const OLDEST_MINOR: u32 = 31;
/// The node id of the file system's root.
pub(crate) const ROOT_ID: u64 = 1;
/// The most bytes of data in one `WRITE` or `READ`.
pub(crate) const MAX_DATA: u32 = 1 << 20;
/// The most pages of data in one request: [`MAX_DATA`] in pages.
pub(crate) const MAX_PAGES: u16 = 256;

/// Operation codes.
pub(crate) mod op {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const REMOVEXATTR: u32 = 24;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const READDIRPLUS: u32 = 44;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const LSEEK: u32 = 46;
    pub(crate) const COPY_FILE_RANGE: u32 = 47;
    pub(crate) const SYNCFS: u32 = 50;
    pub(crate) const TMPFILE: u32 = 51;
    pub(crate) const STATX: u32 = 52;
}

/// `INIT` flags. Bits 32 and up are sent in `flags2`.
pub(crate) mod init {
    pub(crate) const ASYNC_READ: u64 = 1 << 0;
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    pub(crate) const DONT_MASK: u64 = 1 << 6;
    pub(crate) const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub(crate) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(crate) const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const POSIX_ACL: u64 = 1 << 20;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(crate) const SUBMOUNTS: u64 = 1 << 27;
    pub(crate) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub(crate) const SETXATTR_EXT: u64 = 1 << 29;
    pub(crate) const INIT_EXT: u64 = 1 << 30;
    pub(crate) const CREATE_SUPP_GROUP: u64 = 1 << 34;
    pub(crate) const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    pub(crate) const NO_EXPORT_SUPPORT: u64 = 1 << 38;
    pub(crate) const ALLOW_IDMAP: u64 = 1 << 40;
}

/// `SETATTR`: the attributes to be set.
pub(crate) mod fattr {
    pub(crate) const MODE: u32 = 1 << 0;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const FH: u32 = 1 << 6;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
    pub(crate) const KILL_SUIDGID: u32 = 1 << 11;
    /// All attributes.
    pub(crate) const ALL: u32 = MODE | UID | GID | SIZE | ATIME | MTIME;
}

/// `Attr::flags`: this directory is the root of another file system.
pub(crate) const ATTR_SUBMOUNT: u32 = 1 << 0;
/// `OpenOut::open_flags`: what the guest has cached of the file is still valid.
pub(crate) const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// `GetattrIn::getattr_flags` and `StatxIn::getattr_flags`: `fh` is valid.
pub(crate) const GETATTR_FH: u32 = 1 << 0;
/// `WriteIn::write_flags`: clear setuid and setgid, the writer has no `CAP_FSETID`.
pub(crate) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `OpenIn::open_flags`: clear setuid and setgid when truncating.
pub(crate) const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// `SetxattrIn::setxattr_flags`: clear setgid with this access ACL.
pub(crate) const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// `FsyncIn::fsync_flags`: write back only the data.
pub(crate) const FSYNC_DATA: u32 = 1 << 0;
/// `ExtHeader::kind`: supplementary groups.
pub(crate) const EXT_GROUPS: u32 = 32;

/// Declares a message structure.
macro_rules! message {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
        pub(crate) struct $name {
            $(pub(crate) $field: $type,)*
        }
    };
}

message!(
    /// The header of every request.
    InHeader { len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16, }
);
message!(
    /// The header of every reply.
    OutHeader { len: u32, error: i32, unique: u64, }
);
message!(
    /// Attributes of an inode.
    Attr {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32,
        mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
);
message!(
    /// The inode of a name. `*_valid` says how long the name and the attributes may be cached.
    EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64,
        entry_valid_nsec: u32, attr_valid_nsec: u32, attr: Attr,
    }
);
message!(
    /// Attributes, and how long they may be cached.
    AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr, }
);
message!(ForgetIn { nlookup: u64 });
message!(ForgetOne { nodeid: u64, nlookup: u64 });
message!(BatchForgetIn { count: u32, dummy: u32 });
message!(GetattrIn { getattr_flags: u32, dummy: u32, fh: u64 });
message!(MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32 });
message!(MkdirIn { mode: u32, umask: u32 });
message!(RenameIn { newdir: u64 });
message!(Rename2In { newdir: u64, flags: u32, padding: u32 });
message!(LinkIn { oldnodeid: u64 });
message!(SetattrIn {
    valid: u32,
    padding: u32,
    fh: u64,
    size: u64,
    lock_owner: u64,
    atime: u64,
    mtime: u64,
    ctime: u64,
    atimensec: u32,
    mtimensec: u32,
    ctimensec: u32,
    mode: u32,
    unused4: u32,
    uid: u32,
    gid: u32,
    unused5: u32,
});
message!(OpenIn { flags: u32, open_flags: u32 });
message!(CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32 });
message!(OpenOut { fh: u64, open_flags: u32, backing_id: u32 });
message!(ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 });
message!(ReadIn { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 });
message!(WriteIn { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32 });
message!(WriteOut { size: u32, padding: u32 });
message!(StatfsOut {
    blocks: u64,
    bfree: u64,
    bavail: u64,
    files: u64,
    ffree: u64,
    bsize: u32,
    namelen: u32,
    frsize: u32,
    padding: u32,
    spare: [u32; 6],
});
message!(FsyncIn { fh: u64, fsync_flags: u32, padding: u32 });
message!(SetxattrIn { size: u32, flags: u32, setxattr_flags: u32, padding: u32 });
message!(GetxattrIn { size: u32, padding: u32 });
message!(GetxattrOut { size: u32, padding: u32 });
message!(InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32 });
message!(InitOut {
    major: u32,
    minor: u32,
    max_readahead: u32,
    flags: u32,
    max_background: u16,
    congestion_threshold: u16,
    max_write: u32,
    time_gran: u32,
    max_pages: u16,
    map_alignment: u16,
    flags2: u32,
    max_stack_depth: u32,
    unused: [u32; 6],
});
message!(FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 });
message!(LseekIn { fh: u64, offset: u64, whence: u32, padding: u32 });
message!(LseekOut { offset: u64 });
message!(CopyFileRangeIn { fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64 });
message!(Dirent { ino: u64, off: u64, namelen: u32, kind: u32 });
message!(StatxIn { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32 });
message!(Time { tv_sec: i64, tv_nsec: u32, reserved: i32 });
message!(StatxOut {
    attr_valid: u64,
    attr_valid_nsec: u32,
    out_flags: u32,
    spare1: [u64; 2],
    mask: u32,
    blksize: u32,
    attributes: u64,
    nlink: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    spare0: u16,
    ino: u64,
    size: u64,
    blocks: u64,
    attributes_mask: u64,
    atime: Time,
    btime: Time,
    ctime: Time,
    mtime: Time,
    rdev_major: u32,
    rdev_minor: u32,
    dev_major: u32,
    dev_minor: u32,
    spare2: [u64; 14],
});
message!(
    /// The header of an extension after a request's arguments. `size` includes the header.
    ExtHeader { size: u32, kind: u32, }
);

/// Length of a request's header in bytes.
pub(crate) const IN_HEADER: usize = size_of::<InHeader>();
/// Length of a reply's header in bytes.
pub(crate) const OUT_HEADER: usize = size_of::<OutHeader>();

/// `length` rounded up to 8 bytes, the alignment of directory entries and extensions.
pub(crate) const fn aligned(length: usize) -> usize {
    length.next_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_of_linux() {
        assert_eq!(IN_HEADER, 40);
        assert_eq!(OUT_HEADER, 16);
        assert_eq!(size_of::<Attr>(), 88);
        assert_eq!(size_of::<EntryOut>(), 128);
        assert_eq!(size_of::<AttrOut>(), 104);
        assert_eq!(size_of::<SetattrIn>(), 88);
        assert_eq!(size_of::<WriteIn>(), 40);
        assert_eq!(size_of::<StatfsOut>(), 80);
        assert_eq!(size_of::<InitOut>(), 64);
        assert_eq!(size_of::<CopyFileRangeIn>(), 56);
        assert_eq!(size_of::<StatxOut>(), 288);
        assert_eq!(size_of::<Dirent>(), 24);
    }
}
