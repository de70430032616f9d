//! The directory of templates. A template's name is derived from what its machine was made of, so that none is used after an update.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use nix::unistd::geteuid;
use sha2::{Digest, Sha256};
use thiserror::Error;
use vmm::machine::template::{Template, TemplateError};

use crate::base::config::Config;
use crate::spec::sizing::{host_cpus, host_memory_mib};

/// Extension of a template's file.
const EXTENSION: &str = "template";

/// Permissions that make others able to write a file.
const OTHERS_WRITE: u32 = 0o022;

/// Why the directory of templates cannot be used.
#[derive(Debug, Error)]
pub(crate) enum TemplateStoreError {
    #[error("examine {}", path.display())]
    Examine { path: PathBuf, source: io::Error },
    #[error("create {}", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("list {}", path.display())]
    List { path: PathBuf, source: io::Error },
    #[error("remove {}", path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error("lock {}", path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error("open {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{} is not trusted: it must be {expected} of root or the caller that nobody else may write", path.display())]
    NotTrusted { path: PathBuf, expected: &'static str },
    #[error("{}", path.display())]
    Template { path: PathBuf, source: TemplateError },
    #[error("no template {0}")]
    Unknown(String),
}

/// The directory of templates.
#[derive(Debug)]
pub(crate) struct TemplateStore {
    dir: PathBuf,
}

/// A template in the directory.
#[derive(Debug)]
pub(crate) struct StoredTemplate {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// Bytes on the disk.
    pub(crate) size: u64,
    /// When a sandbox last started from it, or when it was made.
    pub(crate) used: SystemTime,
}

impl TemplateStore {
    /// The directory that `config` names.
    pub(crate) fn new(config: &Config) -> Self {
        Self { dir: config.template_dir.clone() }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of a template.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name).with_extension(EXTENSION)
    }

    /// Opens the template of this name for a start; `None` if there is none. The start counts as its last use.
    ///
    /// # Errors
    /// The template or the directory may have been written by others.
    pub(crate) fn open(&self, name: &str) -> Result<Option<File>, TemplateStoreError> {
        let path = self.path(name);
        let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(TemplateStoreError::Open { path, source }),
        };
        check_trust(&self.dir, fs::metadata(&self.dir), Metadata::is_dir, "a directory")?;
        check_trust(&path, file.metadata(), Metadata::is_file, "a file")?;
        // The time only decides which template is removed first. A caller that may not set it still uses the template.
        let _ = file.set_modified(SystemTime::now());
        Ok(Some(file))
    }

    /// All templates, the one that was used last first.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(crate) fn list(&self) -> Result<Vec<StoredTemplate>, TemplateStoreError> {
        let failed = |source| TemplateStoreError::List { path: self.dir.clone(), source };
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            found.extend(stored(entry.map_err(failed)?.path()));
        }
        found.sort_by_key(|template| std::cmp::Reverse(template.used));
        Ok(found)
    }

    /// Removes a template. Sandboxes that have started from it keep it until they end.
    ///
    /// # Errors
    /// There is no such template, or it cannot be removed.
    pub(crate) fn remove(&self, name: &str) -> Result<(), TemplateStoreError> {
        let found = self.list()?.into_iter().find(|template| template.name == name);
        let path = found.ok_or_else(|| TemplateStoreError::Unknown(name.to_owned()))?.path;
        fs::remove_file(&path).map_err(|source| TemplateStoreError::Remove { path, source })
    }

    /// Removes the least used templates until the others take at most `max_bytes`, and returns the removed ones.
    ///
    /// # Errors
    /// The directory cannot be read, or a template cannot be removed.
    pub(crate) fn prune(&self, max_bytes: u64) -> Result<Vec<StoredTemplate>, TemplateStoreError> {
        let mut left = max_bytes;
        let mut removed = Vec::new();
        for template in self.list()? {
            match left.checked_sub(template.size) {
                Some(rest) => left = rest,
                None => {
                    self.remove(&template.name)?;
                    removed.push(template);
                }
            }
        }
        Ok(removed)
    }

    /// Checks that the template of this name is whole and of this version.
    ///
    /// # Errors
    /// It is missing, damaged or not trusted.
    pub(crate) fn verify(&self, name: &str) -> Result<(), TemplateStoreError> {
        let file = self.open(name)?.ok_or_else(|| TemplateStoreError::Unknown(name.to_owned()))?;
        let checked = Template::open(file).and_then(|template| template.verify());
        checked.map_err(|source| TemplateStoreError::Template { path: self.path(name), source })
    }

    /// Creates the directory, and locks it to make a template. While another process makes one, waits for it if `wait` is set, and
    /// otherwise returns `None`.
    ///
    /// # Errors
    /// The directory cannot be created, or is not trusted.
    pub(super) fn lock(&self, wait: bool) -> Result<Option<Flock<File>>, TemplateStoreError> {
        let path = || self.dir.clone();
        let created = DirBuilder::new().recursive(true).mode(0o755).create(&self.dir);
        created.map_err(|source| TemplateStoreError::Create { path: path(), source })?;
        let dir = File::open(&self.dir).map_err(|source| TemplateStoreError::Open { path: path(), source })?;
        check_trust(&self.dir, dir.metadata(), Metadata::is_dir, "a directory")?;
        let how = if wait { FlockArg::LockExclusive } else { FlockArg::LockExclusiveNonblock };
        match Flock::lock(dir, how) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
            Err((_, source)) => Err(TemplateStoreError::Lock { path: path(), source: source.into() }),
        }
    }

    /// Moves the file at `new` to the place of a template.
    ///
    /// # Errors
    /// The file cannot be moved.
    pub(super) fn publish(&self, new: &Path, name: &str) -> Result<PathBuf, TemplateStoreError> {
        let path = self.path(name);
        match fs::rename(new, &path) {
            Ok(()) => Ok(path),
            Err(source) => Err(TemplateStoreError::Create { path, source }),
        }
    }
}

/// The template at `path`, if it is one.
fn stored(path: PathBuf) -> Option<StoredTemplate> {
    if path.extension()? != EXTENSION {
        return None;
    }
    let name = path.file_stem()?.to_str()?.to_owned();
    let metadata = fs::symlink_metadata(&path).ok().filter(Metadata::is_file)?;
    Some(StoredTemplate { name, size: 512 * metadata.blocks(), used: metadata.modified().ok()?, path })
}

/// A file of others could make a sandbox do anything that its VMM may do.
fn check_trust(
    path: &Path,
    metadata: io::Result<Metadata>,
    has_type: fn(&Metadata) -> bool,
    expected: &'static str,
) -> Result<(), TemplateStoreError> {
    let metadata = metadata.map_err(|source| TemplateStoreError::Examine { path: path.into(), source })?;
    let is_own = metadata.uid() == 0 || metadata.uid() == geteuid().as_raw();
    let is_trusted = is_own && metadata.mode() & OTHERS_WRITE == 0 && has_type(&metadata);
    if is_trusted { Ok(()) } else { Err(TemplateStoreError::NotTrusted { path: path.into(), expected }) }
}

/// The name of the template for machines with this configuration on this host: a hash of all that its machine is made of. The VMM
/// itself compares what the processor and KVM offer.
///
/// # Errors
/// A file of the configuration cannot be examined.
pub(crate) fn name(config: &Config) -> Result<String, TemplateStoreError> {
    let mut hash = Sha256::new();
    hash.update(env!("CARGO_PKG_VERSION"));
    for path in [&config.vmm, &config.kernel, &config.initramfs] {
        let examined = fs::metadata(path);
        let file = examined.map_err(|source| TemplateStoreError::Examine { path: path.clone(), source })?;
        hash.update(path.as_os_str().as_encoded_bytes());
        for number in
            [file.dev(), file.ino(), file.size(), file.mtime().cast_unsigned(), file.mtime_nsec().cast_unsigned()]
        {
            hash.update(number.to_le_bytes());
        }
    }
    for number in [config.memory_mib, host_memory_mib(), host_cpus().min(config.max_vcpus).into()] {
        hash.update(number.to_le_bytes());
    }
    Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}
