//! What vmrt's end-to-end tests share: bundles, the runtime under test, terminals, and a host_snapshot of what it leaves
//! behind.
//!
//! The tests change the machine they run on and count what is on it, so they run alone in the test host, one at a
//! time: see `tests/e2e`.

pub mod bundle;
pub mod caller;
pub mod daemons;
pub mod host_snapshot;
pub mod installed;
pub mod rootless_namespaces;
pub mod runtime;
pub mod terminal;
pub mod tmpfs_mount;

use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take in a slow test host before it counts as hanging.
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// Asks again and again until `answer` gives something, and gives up with `None` when `timeout` is over.
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
