//! Callers of the runtime under test: root, a user, and the root of a user namespace.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{TIMEOUT, eventually};

/// The id of the user without root, and of its group.
pub const USER: u32 = 1000;

/// A caller of the runtime.
pub struct Caller {
    /// The command line before the called program, which changes from root to this caller.
    prefix: Vec<String>,
}

impl Caller {
    /// Root, the user that the tests run as.
    #[must_use]
    pub fn root() -> Self {
        Self { prefix: Vec::new() }
    }

    /// A caller whose programs run with this prefix of the command line.
    #[must_use]
    pub fn with_prefix(prefix: &[&str]) -> Self {
        Self { prefix: prefix.iter().map(ToString::to_string).collect() }
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
