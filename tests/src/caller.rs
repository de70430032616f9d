//! Who calls the runtime under test, where that is not root.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use tempfile::TempDir;

use crate::runtime::{is_vmrt, program};
use crate::{TIMEOUT, eventually};

/// The user who is not root.
pub const USER: u32 = 1000;

/// Whoever calls the runtime.
pub struct Caller {
    /// What is called to call it.
    words: Vec<String>,
    /// The runtime where that caller can reach it; the checkout may be closed to others.
    programs: Option<TempDir>,
}

impl Caller {
    /// Root, as which the tests run.
    #[must_use]
    pub fn root() -> Self {
        Self { words: Vec::new(), programs: None }
    }

    /// Who becomes of root by way of these words before a command.
    ///
    /// # Panics
    ///
    /// Where vmrt cannot be copied for them.
    #[must_use]
    pub fn with_prefix(words: &[&str]) -> Self {
        Self { words: words.iter().map(ToString::to_string).collect(), programs: is_vmrt().then(copy) }
    }

    /// The user, in no group but their own.
    #[must_use]
    pub fn user() -> Self {
        Self::become_user("--clear-groups")
    }

    /// The user, as a member of a group.
    #[must_use]
    pub fn user_in(group: u32) -> Self {
        Self::become_user(&format!("--groups={group}"))
    }

    fn become_user(groups: &str) -> Self {
        let [uid, gid] = ids();
        Self::with_prefix(&["setpriv", &uid, &gid, groups])
    }

    /// The same in a cgroup.
    #[must_use]
    pub fn within(mut self, cgroup: &DelegatedCgroup) -> Self {
        let enter = format!("echo $$ >{}/callers/cgroup.procs && exec \"$@\"", cgroup.0.display());
        self.words.splice(0..0, ["sh", "-c", &enter, "sh"].map(str::to_owned));
        self
    }

    /// The runtime as they can call it.
    #[must_use]
    pub fn runtime(&self) -> PathBuf {
        let copied = self.programs.as_ref().map(|copy| copy.path().join("bin/vmrt"));
        copied.unwrap_or_else(|| PathBuf::from(program()))
    }

    /// A program, called by them.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let Some((first, rest)) = self.words.split_first() else { return Command::new(program) };
        let mut command = Command::new(first);
        command.args(rest).arg(program);
        command
    }

    /// Gives them a directory, if they are not root themselves.
    ///
    /// # Panics
    ///
    /// Where it cannot be given.
    pub fn chown(&self, directory: &Path) {
        if !self.words.is_empty() {
            chown(directory, Some(USER), Some(USER)).expect("a directory was given away");
        }
    }
}

/// How `setpriv` becomes the user.
pub(crate) fn ids() -> [String; 2] {
    [format!("--reuid={USER}"), format!("--regid={USER}")]
}

/// vmrt as it is installed.
fn copy() -> TempDir {
    let paths = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&paths).map(|path| path.join(program())).find(|path| path.is_file());
    let found = found.expect("vmrt is in PATH").canonicalize().expect("vmrt's path");
    let prefix = found.parent().and_then(Path::parent).expect("vmrt is installed");
    let to = tempfile::tempdir().expect("a directory");
    fs::set_permissions(to.path(), Permissions::from_mode(0o755)).expect("a directory for everybody");
    let copied = Command::new("cp").arg("-r").args([prefix.join("bin"), prefix.join("lib")]).arg(to.path()).status();
    assert!(copied.expect("cp runs").success(), "vmrt was copied");
    to
}

/// A cgroup in which the user may make others, and where the caller is beside them; gone when dropped.
pub struct DelegatedCgroup(PathBuf);

impl Default for DelegatedCgroup {
    fn default() -> Self {
        Self::new()
    }
}

impl DelegatedCgroup {
    /// Its path from the root of the hierarchy.
    pub const PATH: &'static str = "/vmrt-test-user";

    /// Makes it.
    ///
    /// # Panics
    ///
    /// Where the host does not let it.
    #[must_use]
    pub fn new() -> Self {
        let top = PathBuf::from("/sys/fs/cgroup").join(&Self::PATH[1..]);
        fs::create_dir_all(top.join("callers")).expect("a cgroup");
        fs::write(top.join("cgroup.subtree_control"), "+memory +pids +cpu").expect("controllers");
        for name in ["", "cgroup.procs", "cgroup.subtree_control", "callers", "callers/cgroup.procs"] {
            chown(top.join(name), Some(USER), Some(USER)).expect("a cgroup of the user's");
        }
        Self(top)
    }
}

impl Drop for DelegatedCgroup {
    fn drop(&mut self) {
        let removed =
            || ["callers", ""].into_iter().all(|name| fs::remove_dir(self.0.join(name)).is_ok()).then_some(());
        let removed = eventually(TIMEOUT, || removed().or_else(|| (!self.0.exists()).then_some(())));
        assert!(std::thread::panicking() || removed.is_some(), "{} is in use", self.0.display());
    }
}
