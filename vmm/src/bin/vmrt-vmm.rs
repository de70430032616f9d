//! `vmrt-vmm`: runs one sandbox from its configuration to its exit status, or the proxy of a container in another sandbox.
//!
//! The runtime starts it with one end of a socket pair as an open descriptor. [`vmm::sandbox`] describes how it ends.

use std::process::ExitCode;

fn main() -> ExitCode {
    vmm::program::main(std::env::args_os().skip(1))
}
