//! The virtio-fs device (virtio 1.2, 5.11) and its FUSE server.
//!
//! ```text
//!                                     control server ── SharesHandle ──┐
//!                                                                      ▼
//! guest ── virtqueues ──► device ── buffers ──► server ── inodes ──► tables
//!                                                  │
//!                                                  └── worker ──► host's file systems
//! ```
//!
//! - `device`: the virtqueues and the threads that serve them.
//! - `server`: [`Server`], which handles one request at a time for each worker. It does not know the transport:
//!   [`Server::handle`] takes the buffers of a request and of its reply.
//! - `worker`: the thread state that a request needs: umask, file-system ids, capabilities and working directory.
//! - `tables`: shares, inodes and file handles.
//! - `kernel_view`: which file systems of the host are not served.
//! - `protocol`: the layout of FUSE messages, and how they are read and written.
//!
//! `docs/virtio-fs.md` describes the design.

mod device;
mod error;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod kernel_view;
mod protocol;
mod server;
mod tables;
#[cfg(test)]
mod tests;
mod worker;

pub use device::FsDevice;
pub use error::FsError;
pub use kernel_view::kernel_view;
pub use protocol::buffers::Buffers;
pub use server::state::FsState;
pub use server::{Limits, Server};
pub use tables::shares::{ShareError, SharesHandle};
pub use worker::Worker;
pub use worker::proc_fds::ProcFds;
