//! A VMM without its jail, with which the benchmarks compare the product. Only in builds with the feature `unjailed-bench`, and there
//! only in a program that calls [`choose`], which `vmrt-vmm` does not.

use std::sync::atomic::{AtomicBool, Ordering};

static CHOSEN: AtomicBool = AtomicBool::new(false);

/// Leaves the jail out of this process. Call it before the program starts.
pub fn choose() {
    CHOSEN.store(true, Ordering::Relaxed);
}

pub(super) fn is_chosen() -> bool {
    CHOSEN.load(Ordering::Relaxed)
}
