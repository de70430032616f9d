//! Docker, Podman, containerd and Kubernetes drive vmrt as they drive runc.
//!
//! The tests run in a new network and mount namespace, so that bridges, packet filters and mounts of the
//! engines end with it.

mod containerd;
mod daemons;
mod docker;
mod kubernetes;
mod podman;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// A test and its name.
type Test = (&'static str, fn());

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let modules: [(&str, &[Test]); 10] = [
        ("docker::devices", docker::devices::TESTS),
        ("docker::files", docker::files::TESTS),
        ("docker::lifecycle", docker::lifecycle::TESTS),
        ("docker::limits", docker::limits::TESTS),
        ("docker::network", docker::network::TESTS),
        ("docker::process", docker::process::TESTS),
        ("docker::run", docker::run::TESTS),
        ("containerd", containerd::TESTS),
        ("kubernetes", kubernetes::TESTS),
        ("podman", podman::TESTS),
    ];
    let tests = modules.into_iter().flat_map(|(module, tests)| {
        tests.iter().map(move |(name, test)| {
            Trial::test(format!("{module}::{name}"), || {
                test();
                Ok(())
            })
        })
    });
    if !arguments.list {
        daemons::isolate();
        kubernetes::make_network();
    }
    let conclusion = libtest_mimic::run(&arguments, tests.collect());
    daemons::stop();
    if conclusion.has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
