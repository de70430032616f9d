//! A file system that tests mount on the host.

use std::path::Path;
use std::process::Command;
use std::thread;

/// A tmpfs mounted on a directory of the host; unmounted when dropped.
pub struct TmpfsMount<'a>(&'a Path);

impl<'a> TmpfsMount<'a> {
    /// Mounts a tmpfs.
    ///
    /// # Panics
    ///
    /// Panics if the mount fails.
    #[must_use]
    pub fn new(on: &'a Path) -> Self {
        let status = Command::new("mount").args(["-t", "tmpfs", "sub"]).arg(on).status();
        assert!(status.expect("mount runs").success());
        Self(on)
    }

    /// Mounts a tmpfs with shared propagation: mounts below it appear in other mount namespaces.
    ///
    /// # Panics
    ///
    /// Panics if the mount fails.
    #[must_use]
    pub fn shared(on: &'a Path) -> Self {
        let mounted = Self::new(on);
        let status = Command::new("mount").arg("--make-shared").arg(on).status();
        assert!(status.expect("mount runs").success());
        mounted
    }

    /// Unmounts it with `umount`. Returns false if it is in use and still mounted.
    ///
    /// # Panics
    ///
    /// Panics if `umount` does not run.
    #[must_use]
    pub fn unmount(&self) -> bool {
        Command::new("umount").arg(self.0).status().expect("umount runs").success()
    }
}

impl Drop for TmpfsMount<'_> {
    fn drop(&mut self) {
        let is_mounted = Command::new("mountpoint").arg("--quiet").arg(self.0).status();
        if is_mounted.is_ok_and(|status| status.success()) {
            let status = Command::new("umount").arg("--lazy").arg(self.0).status();
            assert!(thread::panicking() || status.expect("umount runs").success());
        }
    }
}
