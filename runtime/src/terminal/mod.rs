//! Terminals and standard streams of container processes.

pub(crate) mod console;
pub(crate) mod own_description;
pub(crate) mod stdio;
pub(crate) mod tty;
