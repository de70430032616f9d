//! Modules that use nothing else of this crate: container ids, the configuration file, the log with its timestamps and error
//! texts, files in a container's directory and files that others write, the timeline of a start, and the undo stack.

pub(crate) mod config;
pub(crate) mod container_id;
pub(crate) mod error_chain;
pub(crate) mod log;
pub(crate) mod state_file;
pub(crate) mod timeline;
pub(crate) mod timestamp;
pub(crate) mod undo;
pub(crate) mod untrusted_file;
