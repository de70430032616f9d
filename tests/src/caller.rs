//! Callers of the runtime under test: root, a user, and the root of a user namespace.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use tempfile::TempDir;

use crate::runtime::{is_vmrt, program};
use crate::{TIMEOUT, eventually};

/// The id of the user without root, and of its group.
pub const USER: u32 = 1000;

/// A caller of the runtime.
pub struct Caller {
    /// The command line before the called program, which changes from root to this caller.
    prefix: Vec<String>,
    /// A copy of the runtime that the caller can access; the checkout may be inaccessible to other users.
    programs: Option<TempDir>,
}

impl Caller {
    /// Root, the user that the tests run as.
    #[must_use]
    pub fn root() -> Self {
        Self { prefix: Vec::new(), programs: None }
    }

    /// A caller whose programs run with this prefix of the command line.
    ///
    /// # Panics
    ///
    /// Panics if vmrt cannot be copied for the caller.
    #[must_use]
    pub fn with_prefix(prefix: &[&str]) -> Self {
        Self { prefix: prefix.iter().map(ToString::to_string).collect(), programs: is_vmrt().then(copy_installation) }
    }

    /// The user, without supplementary groups.
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
        let [uid, gid] = user_options();
        Self::with_prefix(&["setpriv", &uid, &gid, groups])
    }

    /// The same caller in a cgroup.
    #[must_use]
    pub fn within(mut self, cgroup: &DelegatedCgroup) -> Self {
        let enter = format!("echo $$ >{}/callers/cgroup.procs && exec \"$@\"", cgroup.0.display());
        self.prefix.splice(0..0, ["sh", "-c", &enter, "sh"].map(str::to_owned));
        self
    }

    /// The path of the runtime for this caller.
    #[must_use]
    pub fn runtime(&self) -> PathBuf {
        let copied = self.programs.as_ref().map(|copy| copy.path().join("bin/vmrt"));
        copied.unwrap_or_else(|| PathBuf::from(program()))
    }

    /// A command that runs a program as this caller.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let Some((first, rest)) = self.prefix.split_first() else { return Command::new(program) };
        let mut command = Command::new(first);
        command.args(rest).arg(program);
        command
    }

    /// Makes the user the owner of a directory, unless the caller is root.
    ///
    /// # Panics
    ///
    /// Panics if the owner cannot be changed.
    pub fn chown(&self, directory: &Path) {
        if !self.prefix.is_empty() {
            chown(directory, Some(USER), Some(USER)).expect("the directory has another owner");
        }
    }
}

/// The options with which `setpriv` changes to the user.
pub(crate) fn user_options() -> [String; 2] {
    [format!("--reuid={USER}"), format!("--regid={USER}")]
}

/// Copies the installed vmrt into a directory that every user can read.
fn copy_installation() -> TempDir {
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

/// A cgroup in which the user may make other cgroups. The caller is in the cgroup `callers` in it. Removed when dropped.
pub struct DelegatedCgroup(PathBuf);

impl Default for DelegatedCgroup {
    fn default() -> Self {
        Self::new()
    }
}

impl DelegatedCgroup {
    /// The path from the root of the hierarchy.
    pub const PATH: &'static str = "/vmrt-test-user";

    /// Creates the cgroup.
    ///
    /// # Panics
    ///
    /// Panics if the host refuses.
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
