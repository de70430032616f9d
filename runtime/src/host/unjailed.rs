//! A sandbox without its jail, with which the benchmarks compare the product. Only in builds with the feature `unjailed-bench`, and there
//! only in a program that calls [`crate::main_without_jail`], which `vmrt` does not.

use std::sync::atomic::{AtomicBool, Ordering};

static CHOSEN: AtomicBool = AtomicBool::new(false);

/// Leaves the namespaces of VMMs and the helpers out of what this process starts.
pub(crate) fn choose() {
    CHOSEN.store(true, Ordering::Relaxed);
}

pub(crate) fn is_chosen() -> bool {
    CHOSEN.load(Ordering::Relaxed)
}
