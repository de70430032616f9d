//! Code that a test runs in the VMM's threads, as an attacker would that has taken the VMM over. Only in builds with the feature
//! `takeover`, which no installed program has.

use std::sync::OnceLock;

use super::seccomp::ThreadClass;

/// A place in a thread's work.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Point {
    /// The thread has just been confined.
    Confined(ThreadClass),
    /// A thread of the file server serves a request that may block. The guest's shares are open.
    BlockingRequest,
}

static ATTACK: OnceLock<fn(Point)> = OnceLock::new();

/// Sets the code. Only the first call has an effect.
pub fn set(attack: fn(Point)) {
    let _ = ATTACK.set(attack);
}

/// Runs the code, if there is some.
pub(crate) fn reach(point: Point) {
    if let Some(attack) = ATTACK.get() {
        attack(point);
    }
}
