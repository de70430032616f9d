//! Errors of the file server.

use thiserror::Error;

/// Why the file server cannot work.
#[derive(Debug, Error)]
pub enum FsError {
    /// A system call failed.
    #[error("cannot {0}")]
    System(&'static str, #[source] std::io::Error),
    /// The device's tag is empty or does not fit its field.
    #[error("file system tag {0:?} is empty or longer than 36 bytes")]
    Tag(String),
    /// No path leads to an inode that the guest has open.
    #[error("inode {inode}, which the guest has open, is not found in share {share:?}")]
    NoPath {
        /// Its node id.
        inode: u64,
        /// The share's name.
        share: String,
        /// The error of the lookup.
        source: std::io::Error,
    },
    /// An inode that the guest had open cannot be opened again.
    #[error("cannot open inode {inode} again")]
    Reopen {
        /// Its node id.
        inode: u64,
        /// The error of the open.
        source: std::io::Error,
    },
}
