//! Shared parts of vmrt's end-to-end tests: bundles, the runtime under test, its callers, terminals, and the leak check.
//!
//! The tests change the machine that they run on and check its state. So they run alone in the test host, one at a time: see
//! `tests/e2e`.

pub mod bundle;
pub mod caller;
pub mod daemons;
pub mod host_snapshot;
pub mod installed;
#[cfg(test)]
mod layers;
pub mod rootless_namespaces;
pub mod runtime;
pub mod terminal;
#[cfg(test)]
mod threats;
pub mod tmpfs_mount;

use std::env;
use std::thread;
use std::time::{Duration, Instant};

/// An operation that takes longer than this counts as hanging. Sufficient for a slow test host.
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// Whether the tests run on this machine's own KVM. Otherwise they run on a software CPU, where times mean little.
#[must_use]
pub fn is_hardware() -> bool {
    env::var("VMRT_TEST_HOST").as_deref() == Ok("kvm")
}

/// Calls `answer` until it returns a value, or returns `None` after `timeout`.
pub fn eventually<T>(timeout: Duration, mut answer: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + timeout;
    loop {
        if let Some(found) = answer() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(Duration::from_millis(10));
    }
}
