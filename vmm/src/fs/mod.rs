//! The virtio-fs device (virtio 1.2, 5.11) and the FUSE server behind it.
//!
//! ```text
//!  control server ── SharesHandle ──┐
//!                                   ▼
//!  guest ─ virtqueues ─ FsDevice ─ Server ─ host's file systems
//!            device, chain      server, ops/*
//! ```
//!
//! `device` moves requests between virtqueues and the server on threads of its own (`queue_thread`); those that wait
//! for a disk are served beside (`slow_lane`). The server knows no transport:
//! [`Server::handle`] takes the bytes of a request and the space for its reply. `docs/virtio-fs.md` tells how it is
//! made safe and fast.

mod buffers;
mod chain;
mod device;
mod directory;
mod handles;
mod inodes;
mod ops;
mod queue_thread;
mod request;
mod server;
mod shares;
mod slow_lane;
mod state;
#[cfg(test)]
mod tests;
mod wire;
mod worker;

use thiserror::Error;

pub use buffers::Buffers;
pub use device::FsDevice;
pub use server::{Limits, Server};
pub use shares::{ShareError, ShareOptions, SharesHandle};
pub use state::FsState;
pub use worker::{Descriptors, Worker};

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
    Descriptors,
    /// What the guest has open cannot be found by a path.
    #[error("inode {inode}, which the guest has open, is not to be found in share {share:?}")]
    Nameless {
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
