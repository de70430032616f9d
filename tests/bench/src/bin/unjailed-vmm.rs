//! `vmrt-vmm` without its jail: see the part `jail` of the benchmarks.

use std::process::ExitCode;

fn main() -> ExitCode {
    vmm::jail::unjailed::choose();
    vmm::program::main(std::env::args_os().skip(1))
}
