//! An existing root file system: a directory or a tar archive.

use std::path::Path;
use std::process::Command;
use std::{fs, io};

use super::Error;
use super::config::ImageDefaults;
use crate::command;

/// Copies the directory or unpacks the archive into `rootfs`, with owners, links, devices and extended attributes.
pub(super) fn fill(from: &Path, rootfs: &Path) -> Result<ImageDefaults, Error> {
    let source = fs::canonicalize(from).map_err(|source| Error::NoSource { path: from.into(), source })?;
    if source.is_dir() {
        eprintln!("rootfs-builder: copying {}", from.display());
        check_not_inside_source(&source, rootfs)?;
        let mut copy = Command::new("cp");
        command::run(copy.args(["--archive", "--reflink=auto", "--"]).arg(source.join(".")).arg(rootfs), "coreutils")?;
    } else {
        eprintln!("rootfs-builder: unpacking {}", from.display());
        let mut unpack = Command::new("tar");
        unpack.args(["--extract", "--numeric-owner", "--same-owner", "--preserve-permissions"]);
        unpack.args(["--xattrs", "--xattrs-include=*"]);
        command::run(unpack.arg("--file").arg(&source).arg("--directory").arg(rootfs), "tar")?;
    }
    Ok(ImageDefaults { args: vec!["sh".into()], ..ImageDefaults::default() })
}

/// Refuses a bundle inside the directory that it copies: it would copy itself without end.
fn check_not_inside_source(source: &Path, rootfs: &Path) -> Result<(), Error> {
    match rootfs.starts_with(source) {
        true => Err(Error::Rootfs {
            path: source.into(),
            source: io::Error::new(io::ErrorKind::InvalidInput, "the bundle would be inside the directory it copies"),
        }),
        false => Ok(()),
    }
}
