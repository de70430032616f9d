//! Bundles: `config.json` and `rootfs/` in one directory.

mod busybox;
mod config;
mod debian;
mod import;
mod oci;

use std::path::{Path, PathBuf};
use std::{fs, io};

use thiserror::Error;

use self::config::ImageDefaults;
use crate::cli::{BundleArgs, BundleKind};
use crate::command;
use crate::staging::{self, Staging};

/// The reason why no bundle was created.
#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Staging(#[from] staging::Error),
    #[error(transparent)]
    Command(#[from] command::Error),
    #[error("create the root file system: {}", .path.display())]
    Rootfs { path: PathBuf, source: io::Error },
    #[error("the package {package} holds no {file}")]
    Package { package: &'static str, file: &'static str },
    #[error("read {}", .path.display())]
    NoSource { path: PathBuf, source: io::Error },
    #[error("image layout {}", .layout.display())]
    Oci { layout: PathBuf, source: oci::Error },
    #[error("write config.json")]
    Config(#[source] config::Error),
}

/// Creates the bundle. On an error, the output path does not change.
pub(crate) fn build(kind: BundleKind) -> Result<(), Error> {
    match kind {
        BundleKind::Busybox { bundle } => assemble(&bundle, busybox::fill),
        BundleKind::Debian { include, bundle } => assemble(&bundle, |rootfs| debian::fill(&include, rootfs)),
        BundleKind::Rootfs { from, bundle } => assemble(&bundle, |rootfs| import::fill(&from, rootfs)),
        BundleKind::Oci { layout, reference, bundle } => assemble(&bundle, |rootfs| {
            oci::fill(&layout, reference.as_deref(), rootfs).map_err(|source| Error::Oci { layout, source })
        }),
    }
}

/// Creates the root file system by `fill`, and writes the `config.json`.
fn assemble(args: &BundleArgs, fill: impl FnOnce(&Path) -> Result<ImageDefaults, Error>) -> Result<(), Error> {
    let staging = Staging::new(&args.output)?;
    let rootfs = staging.path().join("rootfs");
    fs::create_dir(&rootfs).map_err(|source| Error::Rootfs { path: rootfs.clone(), source })?;
    let image = fill(&rootfs)?;
    config::write(&staging.path().join("config.json"), args, image).map_err(Error::Config)?;
    staging.finish()?;
    eprintln!("rootfs-builder: the bundle {} is ready", args.output.display());
    Ok(())
}
