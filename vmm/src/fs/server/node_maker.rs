//! Has the helper create device nodes, which no process in a user namespace may create.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::helper::MakeNode;

/// The connection to the helper. One request is made at a time.
#[derive(Debug)]
pub(super) struct NodeMaker(Mutex<OwnedFd>);

impl NodeMaker {
    pub(super) fn new(connection: OwnedFd) -> Self {
        Self(Mutex::new(connection))
    }

    /// Creates `node` in `directory`, and waits for it.
    pub(super) fn make(&self, node: &MakeNode, directory: impl AsFd) -> Result<(), Errno> {
        let connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let made = node.call(connection.as_fd(), directory.as_fd());
        made.map_err(|errno| Errno::from_raw_os_error(errno as i32))
    }
}

/// Whether the kernel may refuse to create the node to a process in a user namespace. It does not refuse overlay whiteouts.
pub(super) fn is_device(kind: FileType, device: u64) -> bool {
    match kind {
        FileType::CharacterDevice => device != 0,
        FileType::BlockDevice => true,
        _ => false,
    }
}
