//! The `vmrt-vmm` program: its arguments, its log, and the second program in the same file, the OOM notifier.

mod log;
pub mod oom_notifier;
mod options;

pub use options::{LogFormat, Options, ProcessError, USAGE};
