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
//! for a disk are served beside (`blocking_pool`). The server knows no transport:
//! [`Server::handle`] takes the bytes of a request and the space for its reply. `docs/virtio-fs.md` tells how it is
//! made safe and fast.

mod device;
mod error;
mod protocol;
mod server;
mod tables;
#[cfg(test)]
mod tests;
mod worker;

pub use device::FsDevice;
pub use error::FsError;
pub use protocol::buffers::Buffers;
pub use server::state::FsState;
pub use server::{Limits, Server};
pub use tables::shares::{ShareError, ShareOptions, SharesHandle};
pub use worker::Worker;
pub use worker::proc_fds::ProcFds;
