//! Debian bookworm's root file system.

use std::path::Path;
use std::process::Command;

use super::Error;
use super::config::ImageDefaults;
use crate::command;

/// Installs Debian's essential packages and the packages in `include` into `rootfs`.
pub(super) fn fill(include: &[String], rootfs: &Path) -> Result<ImageDefaults, Error> {
    eprintln!("rootfs-builder: installing Debian bookworm");
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.args(["--variant=minbase", "--format=directory"]);
    if !include.is_empty() {
        mmdebstrap.arg(format!("--include={}", include.join(",")));
    }
    command::run(mmdebstrap.arg("bookworm").arg(rootfs), "mmdebstrap")?;
    Ok(ImageDefaults { args: vec!["bash".into()], ..ImageDefaults::default() })
}
