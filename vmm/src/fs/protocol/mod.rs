//! FUSE messages: their layout, the buffers that hold them, and how they are read and written.

pub(super) mod buffers;
pub(super) mod reply;
pub(super) mod request;
pub(super) mod wire;
