//! The daemons that all tests share, started by the first test that needs them.

use std::path::Path;
use std::sync::OnceLock;

use vmrt_tests::bundle::templates;
pub use vmrt_tests::daemons::{Daemons, IMAGE, isolate};
pub use vmrt_tests::installed::runtime_path;

static DAEMONS: OnceLock<Daemons> = OnceLock::new();

/// The shared daemons, started by the first call.
pub fn daemons() -> &'static Daemons {
    DAEMONS.get_or_init(|| Daemons::start(&templates().join("busybox/rootfs")))
}

/// Stops the daemons, if they run.
pub fn stop() {
    if let Some(daemons) = DAEMONS.get() {
        daemons.stop();
    }
}

/// Packs the root file system of the busybox bundle.
pub fn pack_rootfs(archive: &Path) {
    vmrt_tests::daemons::pack_rootfs(&templates().join("busybox/rootfs"), archive);
}
