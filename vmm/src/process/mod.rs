//! The `vmrt-vmm` program: its arguments and its log.

mod log;
mod options;

pub use options::{LogFormat, Options, ProcessError, USAGE};
