//! `vmrt` that starts VMMs without their jail: see the part `jail` of the benchmarks.

use std::process::ExitCode;

fn main() -> ExitCode {
    runtime::main_without_jail()
}
