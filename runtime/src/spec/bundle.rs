//! Bundles. A bundle is a directory with `config.json` and, in most cases, the root file system.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Process, Spec};

use super::check::check;
use super::error::BundleError;
use super::parse::parse;
use super::resources::remove_kernel_memory;
use crate::base::log::Log;

/// Annotation with the path of a file that receives the messages of the guest's kernel. The path is relative to the bundle's directory.
pub(crate) const CONSOLE_LOG_ANNOTATION: &str = "dev.vmrt.console-log";

/// Name of the specification's file in a bundle.
pub(crate) const CONFIG_FILE: &str = "config.json";

/// A bundle with a valid specification. None of its other files has been opened.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// Absolute path of the bundle's directory.
    pub(crate) dir: PathBuf,
    pub(crate) spec: Spec,
}

impl Bundle {
    /// Reads and checks a bundle. `config` is the path of the specification, relative to the working directory, if it is not in the
    /// bundle.
    pub(crate) fn load(dir: &Path, config: Option<&Path>, log: &Log) -> Result<Self, BundleError> {
        let absolute = fs::canonicalize(dir).and_then(|dir| dir.read_dir().map(|_| dir));
        let dir = absolute.map_err(|source| BundleError::NoBundle { path: dir.into(), source })?;
        let spec = match config {
            Some(path) => read_spec(path, path, log),
            None => read_spec(&dir.join(CONFIG_FILE), Path::new(CONFIG_FILE), log),
        }?;
        check(&spec)?;
        Ok(Self { dir, spec })
    }

    /// Absolute path of the root file system.
    pub(crate) fn rootfs(&self) -> PathBuf {
        let root = self.spec.root().as_ref().map(|root| root.path().as_path());
        self.dir.join(root.unwrap_or(Path::new("")))
    }

    /// Normalizes deprecated settings as runc does, with a warning. A relative mount destination becomes absolute: it starts at the
    /// root. Limits of kernel memory are removed, because cgroup v2 does not have them.
    pub(crate) fn normalize_deprecated(&mut self, log: &Log) {
        self.make_destinations_absolute(log);
        let resources = self.spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut());
        if let Some(resources) = resources {
            remove_kernel_memory(resources, log);
        }
    }

    fn make_destinations_absolute(&mut self, log: &Log) {
        let mounts = self.spec.mounts_mut().iter_mut().flatten();
        for mount in mounts.filter(|mount| !mount.destination().is_absolute()) {
            log.warn(&format!("mount destination {} is not absolute", mount.destination().display()));
            mount.set_destination(Path::new("/").join(mount.destination()));
        }
    }

    /// The container's init process.
    pub(crate) fn process(&self) -> Result<&Process, BundleError> {
        self.spec.process().as_ref().ok_or(BundleError::NoProcess)
    }

    /// The program of the init process, as the specification writes it. Empty without arguments.
    pub(crate) fn program(&self) -> Result<String, BundleError> {
        Ok(self.process()?.args().as_ref().and_then(|args| args.first()).cloned().unwrap_or_default())
    }

    /// `linux.cgroupsPath`, unless it is empty.
    pub(crate) fn cgroups_path(&self) -> Option<&Path> {
        self.spec.linux().as_ref()?.cgroups_path().as_deref().filter(|path| !path.as_os_str().is_empty())
    }

    /// Absolute path of the file that receives the messages of the guest's kernel, if an annotation names one.
    pub(crate) fn console_log(&self) -> Option<PathBuf> {
        let annotations = self.spec.annotations().as_ref()?;
        annotations.get(CONSOLE_LOG_ANNOTATION).map(|path| self.dir.join(path))
    }

    /// Whether the init process has a terminal.
    pub(crate) fn has_terminal(&self) -> bool {
        self.process().is_ok_and(|process| process.terminal().unwrap_or_default())
    }
}

/// Reads the specification at `path`. The error for a missing file contains `name`.
fn read_spec(path: &Path, name: &Path, log: &Log) -> Result<Spec, BundleError> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(BundleError::NoConfig(name.into())),
        result => result.map_err(|source| BundleError::Read { path: path.into(), source })?,
    };
    let spec = parse(&text, "/process", log).map_err(|source| BundleError::Json { path: path.into(), source })?;
    // The parser also accepts an array with the values of the fields.
    if text.trim_ascii_start().starts_with(b"{") { Ok(spec) } else { Err(BundleError::NoObject(path.into())) }
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
