//! Errors of the file server.

use thiserror::Error;

/// Why the file server cannot work.
#[derive(Debug, Error)]
pub enum FsError {
    /// A system call failed.
    #[error("cannot {0}")]
    System(&'static str, #[source] std::io::Error),
    /// The device's tag does not fit its field.
    #[error("file system tag {0:?} is empty or longer than 36 bytes")]
    Tag(String),
    /// The limit of open descriptors is beyond counting.
    #[error("the limit of open descriptors does not fit an address")]
    FdLimit,
    /// What the guest has open cannot be found by a path.
    #[error("inode {inode}, which the guest has open, is not to be found in share {share:?}")]
    NoPath {
        /// Its node id.
        inode: u64,
        /// The share's name.
        share: String,
        /// Why not.
        source: std::io::Error,
    },
    /// What the guest had open cannot be opened again.
    #[error("cannot open inode {inode} again")]
    Reopen {
        /// Its node id.
        inode: u64,
        /// Why not.
        source: std::io::Error,
    },
}
