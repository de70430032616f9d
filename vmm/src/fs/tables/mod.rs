//! The objects that the guest can name: shares, inodes (by node id) and open files (by file handle).

pub(super) mod directory_stream;
pub(super) mod handles;
pub(super) mod inode;
pub(super) mod inodes;
pub(super) mod shares;
