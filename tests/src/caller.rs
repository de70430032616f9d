//! Who calls the runtime under test, where that is not root.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use tempfile::TempDir;

use crate::runtime::{is_vmrt, program};

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
    pub fn by(words: &[&str]) -> Self {
        Self { words: words.iter().map(ToString::to_string).collect(), programs: is_vmrt().then(copy) }
    }

    /// The user.
    #[must_use]
    pub fn user() -> Self {
        let (uid, gid) = (format!("--reuid={USER}"), format!("--regid={USER}"));
        Self::by(&["setpriv", &uid, &gid, "--clear-groups"])
    }

    /// The runtime, called by them.
    #[must_use]
    pub fn command(&self) -> Command {
        let copied = self.programs.as_ref().map(|copy| copy.path().join("bin/vmrt"));
        let program = copied.unwrap_or_else(|| PathBuf::from(program()));
        let Some((first, rest)) = self.words.split_first() else { return Command::new(program) };
        let mut command = Command::new(first);
        command.args(rest).arg(program);
        command
    }

    /// Gives them a directory, if they are not root themselves.
    pub(crate) fn give(&self, directory: &Path) {
        if !self.words.is_empty() {
            chown(directory, Some(USER), Some(USER)).expect("a directory was given away");
        }
    }
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
