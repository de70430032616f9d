//! What is known of a container between commands: `ROOT/ID/state.json`, replaced as a whole by rename, and the specification it
//! was made by, which never changes.
//!
//! `create`, `start`, `update` and `delete` hold the container's lock, so of two such commands one waits for the other.
//! Commands that only read, and those the VMM serialises anyway (`kill`, `exec`, `pause`), need none: a container whose
//! `start` hangs can still be killed.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use oci_spec::runtime::Spec;
use thiserror::Error;

use crate::base::container_id::ContainerId;
use crate::base::timestamp;
use crate::host::cgroup::Cgroup;
use crate::host::network::NetworkRecord;
use crate::host::process::HostProcess;
use crate::sandbox::record::{Phase, Record};
use crate::spec::sizing::Size;

const STATE_FILE: &str = "state.json";
/// A copy: the bundle's own may change, or go.
const SPEC_FILE: &str = "config.json";
const LOCK_FILE: &str = "lock";

/// Why a container's state cannot be read or changed.
#[derive(Debug, Error)]
pub(crate) enum StateError {
    #[error("container does not exist")]
    NotFound,
    #[error("container with given ID already exists")]
    Exists,
    #[error("{} is no directory of ours", .0.display())]
    Foreign(PathBuf),
    #[error("{step} {}", path.display())]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error("write {}", path.display())]
    Encode { path: PathBuf, source: serde_json::Error },
    #[error("{} is no valid specification", path.display())]
    Spec { path: PathBuf, source: serde_json::Error },
}

/// What a container's directory holds.
pub(crate) enum Found {
    Record(Box<Record>),
    /// A torn or corrupt file: the container counts as stopped and can be deleted.
    Damaged,
}

/// The directory of all containers.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    root: PathBuf,
}

/// A container's directory, locked until dropped.
#[derive(Debug)]
pub(crate) struct Locked {
    pub(crate) dir: PathBuf,
    lock: Flock<File>,
}

fn io_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError + use<> {
    let path = path.to_owned();
    move |source| StateError::Io { step, path, source }
}

impl Store {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Absolute path of the directory of all containers.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of one container.
    pub(crate) fn dir(&self, id: &ContainerId) -> PathBuf {
        self.root.join(id.as_str())
    }

    /// Makes the directory of a new container and locks it.
    ///
    /// Of two commands that want the same id, the one that gets the lock first wins; a directory without `state.json`
    /// is what a killed `create` left and is taken over.
    pub(crate) fn claim(&self, id: &ContainerId) -> Result<Locked, StateError> {
        let dir = self.dir(id);
        make_private_dir_all(&self.root)?;
        loop {
            match DirBuilder::new().mode(0o700).create(&dir) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_ours(&dir)?,
                result => result.map_err(io_error("create", &dir))?,
            }
            let Some(locked) = Locked::take(&dir, true)? else { continue };
            return if dir.join(STATE_FILE).symlink_metadata().is_ok() { Err(StateError::Exists) } else { Ok(locked) };
        }
    }

    /// Locks an existing container, waiting for the command that holds it.
    pub(crate) fn lock(&self, id: &ContainerId) -> Result<Locked, StateError> {
        Locked::take(&self.dir(id), false)?.ok_or(StateError::NotFound)
    }

    /// Locks whatever is left of a container, even if it never had a state.
    pub(crate) fn lock_remains(&self, id: &ContainerId) -> Result<Locked, StateError> {
        Locked::take(&self.dir(id), true)?.ok_or(StateError::NotFound)
    }

    /// Reads a container's state.
    pub(crate) fn find(&self, id: &ContainerId) -> Result<Found, StateError> {
        let path = self.dir(id).join(STATE_FILE);
        match fs::read(&path) {
            Ok(bytes) => Ok(match serde_json::from_slice::<Record>(&bytes) {
                Ok(record) if record.id == id.as_str() => Found::Record(Box::new(record)),
                _ => Found::Damaged,
            }),
            Err(error) if absent(&error) => Err(StateError::NotFound),
            Err(error) => Err(io_error("read", &path)(error)),
        }
    }

    /// The record of a container that must have a readable one.
    pub(crate) fn record(&self, id: &ContainerId) -> Result<Box<Record>, StateError> {
        match self.find(id)? {
            Found::Record(record) => Ok(record),
            Found::Damaged => Ok(Box::new(damaged(id, &self.dir(id)))),
        }
    }

    /// The specification that a container was made by.
    pub(crate) fn spec(&self, id: &ContainerId) -> Result<Spec, StateError> {
        let path = self.dir(id).join(SPEC_FILE);
        let text = fs::read(&path).map_err(io_error("read", &path))?;
        serde_json::from_slice(&text).map_err(|source| StateError::Spec { path, source })
    }

    /// Ids of all containers, sorted.
    pub(crate) fn ids(&self) -> Result<Vec<ContainerId>, StateError> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if absent(&error) => return Ok(Vec::new()),
            result => result.map_err(io_error("list", &self.root))?,
        };
        let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<ContainerId>().ok());
        let mut ids: Vec<_> = ids.filter(|id| self.dir(id).join(STATE_FILE).is_file()).collect();
        ids.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        Ok(ids)
    }
}

impl Locked {
    /// Locks the container in `dir`; `None` if it was removed, then or while waiting.
    fn take(dir: &Path, create: bool) -> Result<Option<Self>, StateError> {
        let path = dir.join(LOCK_FILE);
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC;
        let file = OpenOptions::new().write(true).create(create).mode(0o600).custom_flags(flags).open(&path);
        let mut file = match file {
            Err(error) if absent(&error) => return Ok(None),
            result => result.map_err(io_error("open", &path))?,
        };
        let lock = loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(lock) => break lock,
                Err((same, Errno::EINTR)) => file = same,
                Err((_, error)) => return Err(io_error("lock", &path)(error.into())),
            }
        };
        let links = lock.metadata().map_err(io_error("lock", &path))?.nlink();
        Ok((links > 0).then(|| Self { dir: dir.to_owned(), lock }))
    }

    /// Keeps the specification for later commands.
    pub(crate) fn write_spec(&self, spec: &Spec) -> Result<(), StateError> {
        let path = self.dir.join(SPEC_FILE);
        let bytes = serde_json::to_vec(spec).map_err(|source| StateError::Encode { path: path.clone(), source })?;
        fs::write(&path, bytes).map_err(io_error("write", &path))
    }

    /// Replaces the state as a whole.
    pub(crate) fn write(&self, record: &Record) -> Result<(), StateError> {
        let path = self.dir.join(STATE_FILE);
        let bytes = serde_json::to_vec(record).map_err(|source| StateError::Encode { path: path.clone(), source })?;
        let temporary = self.dir.join("state.json.new");
        fs::write(&temporary, bytes).map_err(io_error("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(io_error("replace", &path))
    }

    /// Removes the container's directory and all in it, and lets the lock go.
    pub(crate) fn remove(self) -> Result<(), StateError> {
        remove_dir(&self.dir)?;
        drop(self.lock);
        Ok(())
    }
}

/// Removes a container's directory, whose lock the caller holds: the lock file goes last.
pub(crate) fn remove_dir(dir: &Path) -> Result<(), StateError> {
    let entries = fs::read_dir(dir).map_err(io_error("list", dir))?;
    for entry in entries.flatten().filter(|entry| entry.file_name() != LOCK_FILE) {
        remove(&entry.path())?;
    }
    remove(&dir.join(LOCK_FILE))?;
    match fs::remove_dir(dir) {
        // A `create` that waited for the directory has it now.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(error) if !absent(&error) => Err(io_error("remove", dir)(error)),
        _ => Ok(()),
    }
}

fn remove(path: &Path) -> Result<(), StateError> {
    let result = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        _ => fs::remove_file(path),
    };
    match result {
        Err(error) if !absent(&error) => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn make_private_dir_all(path: &Path) -> Result<(), StateError> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("create", path))
}

/// A directory that somebody else planted, or a link in its place, is not written to.
fn check_ours(dir: &Path) -> Result<(), StateError> {
    match dir.symlink_metadata() {
        Err(error) if absent(&error) => Ok(()),
        Err(error) => Err(io_error("examine", dir)(error)),
        Ok(metadata) if metadata.is_dir() && metadata.uid() == nix::unistd::geteuid().as_raw() => Ok(()),
        Ok(_) => Err(StateError::Foreign(dir.into())),
    }
}

/// What is left to tell of a container whose file cannot be read.
fn damaged(id: &ContainerId, dir: &Path) -> Record {
    Record {
        id: id.to_string(),
        phase: Phase::Stopped,
        vmm: HostProcess::NONE,
        user_namespace: false,
        boot_id: String::new(),
        bundle: PathBuf::new(),
        rootfs: PathBuf::new(),
        created: dir.metadata().and_then(|m| m.modified()).map(timestamp::rfc3339_nanoseconds).unwrap_or_default(),
        annotations: HashMap::new(),
        cgroup: Cgroup::plan(&Cgroup::default_path(id)).unwrap_or_default(),
        scope: None,
        machine: Size::NONE,
        resources: None,
        hooks: None,
        network: NetworkRecord::default(),
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
