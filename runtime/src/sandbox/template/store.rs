//! The directory of templates. A template's name is derived from what its machine was made of, so that none is used after an update.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use nix::unistd::geteuid;
use sha2::{Digest, Sha256};
use thiserror::Error;
use vmm::machine::template::{Template, TemplateError};

use super::maker::MEMORY_MIB;
use crate::base::config::Config;
use crate::spec::sizing::{host_cpus, host_memory_mib};

/// Extension of a template's file.
const EXTENSION: &str = "template";

/// Extension of a file that says why a template could not be made.
const FAILURE_EXTENSION: &str = "failed";

/// How long a template that could not be made is not made again in the background.
const RETRY_AFTER: Duration = Duration::from_secs(600);

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
            Err(error) if is_absent(&error) => return Ok(None),
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
        fs::rename(new, &path).map_err(|source| TemplateStoreError::Create { path: path.clone(), source })?;
        self.remove_failures();
        Ok(path)
    }

    /// Records why a template could not be made. A failure to do so only means that it is tried again earlier.
    pub(super) fn record_failure(&self, name: &str, cause: &str) {
        self.remove_failures();
        let _ = fs::write(self.failure_path(name), format!("{cause}\n"));
    }

    /// Whether this template could not be made a short time ago.
    pub(super) fn has_failed_recently(&self, name: &str) -> bool {
        let modified = fs::symlink_metadata(self.failure_path(name)).and_then(|metadata| metadata.modified());
        modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age < RETRY_AFTER))
    }

    fn failure_path(&self, name: &str) -> PathBuf {
        self.dir.join(name).with_extension(FAILURE_EXTENSION)
    }

    fn remove_failures(&self) {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == FAILURE_EXTENSION) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// Opens the template of this name for a start: the caller's, or else root's. `None` if there is none.
///
/// # Errors
/// The caller's template or its directory may have been written by others, and there is none of root's.
pub(crate) fn find(config: &Config, name: &str) -> Result<Option<File>, TemplateStoreError> {
    let own = TemplateStore::new(config).open(name);
    if matches!(own, Ok(Some(_))) {
        return own;
    }
    let shared = config.shared_template_dir.clone().map(|dir| TemplateStore { dir }.open(name));
    match shared {
        Some(Ok(Some(file))) => Ok(Some(file)),
        _ => own,
    }
}

/// Whether a caller has no template: there is none, or the caller may not enter its own cache, as a user without a home directory.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
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
    for number in [MEMORY_MIB, host_memory_mib(), host_cpus().min(config.max_vcpus).into()] {
        hash.update(number.to_le_bytes());
    }
    Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path, shared: Option<&Path>) -> Config {
        let mut config = Config::load(Some(Path::new("/dev/null")), true).unwrap();
        config.template_dir = dir.join("own");
        config.shared_template_dir = shared.map(Path::to_owned);
        config
    }

    #[test]
    fn a_callers_own_template_is_found_before_roots() {
        let dir = tempfile::tempdir().unwrap();
        let shared = dir.path().join("shared");
        let config = config(dir.path(), Some(&shared));
        let content = || find(&config, "x").unwrap().map(|file| io::read_to_string(file).unwrap());
        assert_eq!(content(), None);
        for (name, text) in [("shared", "root's"), ("own", "own")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("x.template"), text).unwrap();
            assert_eq!(content().as_deref(), Some(text));
        }
        let own = dir.path().join("own/x.template");
        fs::set_permissions(own, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        assert_eq!(content().as_deref(), Some("root's"), "the own one may have been written by others");
    }

    #[test]
    fn a_failure_is_remembered_for_its_template_until_one_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let store = TemplateStore::new(&config(dir.path(), None));
        store.record_failure("x", "no directory yet");
        assert!(!store.has_failed_recently("x"));
        drop(store.lock(true).unwrap());
        store.record_failure("x", "the disk is full");
        assert!(store.has_failed_recently("x") && !store.has_failed_recently("y"));
        assert_eq!(fs::read_to_string(dir.path().join("own/x.failed")).unwrap(), "the disk is full\n");
        assert!(store.list().unwrap().is_empty());
        let old = SystemTime::now() - 2 * RETRY_AFTER;
        File::options().write(true).open(store.failure_path("x")).unwrap().set_modified(old).unwrap();
        assert!(!store.has_failed_recently("x"));
        fs::write(dir.path().join("new"), "").unwrap();
        store.publish(&dir.path().join("new"), "y").unwrap();
        assert_eq!(store.list().unwrap().len(), 1);
        assert!(!store.failure_path("x").exists());
    }
}
