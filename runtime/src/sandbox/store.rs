//! The directories of containers. Each has a record, `ROOT/ID/state.json`, which is replaced as a whole by rename, and a copy of the
//! specification that the container was created from, which never changes.
//!
//! `create`, `start`, `update` and `delete` hold the container's lock, so that one such command waits for another. Commands that only
//! read, and those that the VMM serializes (`kill`, `exec`, `pause`), take no lock: a container whose `start` hangs can be killed.

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
use crate::base::{state_file, timestamp};
use crate::host::cgroup::Cgroup;
use crate::host::network::NetworkRecord;
use crate::host::process::HostProcess;
use crate::sandbox::record::{Phase, Record};
use crate::spec::sizing::Size;

const STATE_FILE: &str = "state.json";
/// A copy of the specification, since the bundle may change or be removed.
const SPEC_FILE: &str = "config.json";
const LOCK_FILE: &str = "lock";

/// Most bytes of the record and of the specification. The guest gets no specification larger than a fourth of it.
const MAX_FILE: u64 = 16 << 20;

/// The reason why a container's state cannot be read or changed.
#[derive(Debug, Error)]
pub(crate) enum StateError {
    #[error("container does not exist")]
    NotFound,
    #[error("container with given ID already exists")]
    Exists,
    #[error("{} is not a directory that this user owns", .0.display())]
    Foreign(PathBuf),
    #[error("{step} {}", path.display())]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error("write {}", path.display())]
    Encode { path: PathBuf, source: serde_json::Error },
    #[error("{} is no valid specification", path.display())]
    Spec { path: PathBuf, source: serde_json::Error },
}

/// The state that is stored for a container.
pub(crate) enum StoredState {
    Record(Box<Record>),
    /// The file is incomplete or corrupt. The container counts as stopped and can be deleted.
    Damaged,
}

/// The directory of all containers.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    root: PathBuf,
}

/// A container's directory, which is locked until this is dropped.
#[derive(Debug)]
pub(crate) struct LockedDir {
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

    /// Creates and locks the directory of a new container. A directory without `state.json`, which a killed `create` left, is reused.
    ///
    /// # Errors
    /// The container exists: of two commands with the same id, the first that gets the lock succeeds. Or the directory cannot be
    /// created, or another user owns it.
    pub(crate) fn claim(&self, id: &ContainerId) -> Result<LockedDir, StateError> {
        let dir = self.dir(id);
        make_private_dir_all(&self.root)?;
        loop {
            let is_new = make_own_dir(&dir)?;
            let acquired = LockedDir::acquire(&dir, true);
            if acquired.is_err() && is_new {
                let _ = remove_dir(&dir);
            }
            let Some(locked) = acquired? else { continue };
            return if dir.join(STATE_FILE).symlink_metadata().is_ok() { Err(StateError::Exists) } else { Ok(locked) };
        }
    }

    /// Locks an existing container. Waits for a command that holds the lock.
    pub(crate) fn lock(&self, id: &ContainerId) -> Result<LockedDir, StateError> {
        LockedDir::acquire(&self.dir(id), false)?.ok_or(StateError::NotFound)
    }

    /// Locks the directory of a container even if it has no state.
    pub(crate) fn lock_remains(&self, id: &ContainerId) -> Result<LockedDir, StateError> {
        LockedDir::acquire(&self.dir(id), true)?.ok_or(StateError::NotFound)
    }

    /// Reads the state that is stored for a container.
    pub(crate) fn find(&self, id: &ContainerId) -> Result<StoredState, StateError> {
        let path = self.dir(id).join(STATE_FILE);
        match state_file::read(&path, MAX_FILE) {
            Ok(bytes) => Ok(match serde_json::from_slice::<Record>(&bytes) {
                Ok(record) if record.id == id.as_str() => StoredState::Record(Box::new(record)),
                _ => StoredState::Damaged,
            }),
            Err(error) if is_absent(&error) => Err(StateError::NotFound),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(StoredState::Damaged),
            Err(error) => Err(io_error("read", &path)(error)),
        }
    }

    /// Reads the record of a container. If it is damaged, a record of a stopped container takes its place.
    pub(crate) fn record(&self, id: &ContainerId) -> Result<Box<Record>, StateError> {
        match self.find(id)? {
            StoredState::Record(record) => Ok(record),
            StoredState::Damaged => Ok(Box::new(damaged(id, &self.dir(id)))),
        }
    }

    /// Reads the specification that a container was created from.
    pub(crate) fn spec(&self, id: &ContainerId) -> Result<Spec, StateError> {
        let path = self.dir(id).join(SPEC_FILE);
        let text = state_file::read(&path, MAX_FILE).map_err(io_error("read", &path))?;
        serde_json::from_slice(&text).map_err(|source| StateError::Spec { path, source })
    }

    /// Returns the ids of all containers, sorted.
    pub(crate) fn ids(&self) -> Result<Vec<ContainerId>, StateError> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            result => result.map_err(io_error("list", &self.root))?,
        };
        let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<ContainerId>().ok());
        let mut ids: Vec<_> = ids.filter(|id| self.dir(id).join(STATE_FILE).symlink_metadata().is_ok()).collect();
        ids.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        Ok(ids)
    }
}

impl LockedDir {
    /// Locks `dir`; `None` if the container does not exist or was removed while this waited. `create` creates a missing lock file.
    fn acquire(dir: &Path, create: bool) -> Result<Option<Self>, StateError> {
        let path = dir.join(LOCK_FILE);
        let mut file = match state_file::open(&path, OpenOptions::new().write(true).create(create).mode(0o600)) {
            Err(error) if is_absent(&error) => return Ok(None),
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

    /// Stores the specification for later commands.
    pub(crate) fn write_spec(&self, spec: &Spec) -> Result<(), StateError> {
        let path = self.dir.join(SPEC_FILE);
        let bytes = serde_json::to_vec(spec).map_err(|source| StateError::Encode { path: path.clone(), source })?;
        state_file::write_new(&path, 0o600, &bytes).map_err(io_error("write", &path))
    }

    /// Replaces the record.
    pub(crate) fn write(&self, record: &Record) -> Result<(), StateError> {
        let path = self.dir.join(STATE_FILE);
        let bytes = serde_json::to_vec(record).map_err(|source| StateError::Encode { path: path.clone(), source })?;
        let temporary = self.dir.join("state.json.new");
        state_file::replace(&path, &temporary, 0o600, &bytes).map_err(io_error("replace", &path))
    }

    /// Removes the container's directory with its content, and releases the lock.
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
        // A `create` that waited for the lock uses the directory now.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(error) if !is_absent(&error) => Err(io_error("remove", dir)(error)),
        _ => Ok(()),
    }
}

fn remove(path: &Path) -> Result<(), StateError> {
    let result = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        _ => fs::remove_file(path),
    };
    match result {
        Err(error) if !is_absent(&error) => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Makes a directory, unless the caller has made it before. Returns whether it is new.
fn make_own_dir(path: &Path) -> Result<bool, StateError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_owner(path).map(|()| false),
        Err(error) => Err(io_error("create", path)(error)),
    }
}

fn make_private_dir_all(path: &Path) -> Result<(), StateError> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("create", path))
}

/// Refuses a directory of another user and a symbolic link, so that another user cannot choose where files are written.
fn check_owner(dir: &Path) -> Result<(), StateError> {
    match dir.symlink_metadata() {
        Err(error) if is_absent(&error) => Ok(()),
        Err(error) => Err(io_error("examine", dir)(error)),
        Ok(metadata) if metadata.is_dir() && metadata.uid() == nix::unistd::geteuid().as_raw() => Ok(()),
        Ok(_) => Err(StateError::Foreign(dir.into())),
    }
}

/// Makes the record of a container whose stored state is damaged.
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
