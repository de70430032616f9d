//! The `vmrt` command: see [`runtime`].

use std::process::ExitCode;

fn main() -> ExitCode {
    runtime::main()
}
