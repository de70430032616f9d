//! Terminals and standard streams of a container's processes.

pub(crate) mod console;
pub(crate) mod stdio;
pub(crate) mod tty;
