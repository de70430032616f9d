//! Installs the runtime and the files of `deploy/` where users install them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::runtime::program;

/// The path where `make install` puts vmrt and where the files of `deploy/` expect it.
const PROGRAM: &str = "/usr/local/bin/vmrt";

/// The path of a file of `deploy/`.
#[must_use]
pub fn deploy_file(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("deploy").join(file)
}

/// The absolute path of the runtime under test, for engines.
///
/// # Panics
/// The runtime is not in `PATH`.
#[must_use]
pub fn runtime_path() -> String {
    let found = Command::new("sh").args(["-c", "command -v \"$0\"", &program()]).output().expect("sh starts");
    String::from_utf8(found.stdout).expect("a path").trim().to_string()
}

/// Installs the runtime under test as vmrt, and makes `/etc` writable. Both affect only this process's mount namespace.
///
/// # Panics
/// The host refuses.
pub(crate) fn install() {
    let runtime = runtime_path();
    for directory in [Path::new("/etc"), Path::new(PROGRAM).parent().expect("a directory")] {
        overlay(directory);
    }
    if Path::new(PROGRAM).exists() {
        fs::remove_file(PROGRAM).expect("an older vmrt is out of the way");
    }
    symlink(fs::canonicalize(runtime).expect("the runtime"), PROGRAM).expect("the runtime is installed");
}

/// Mounts an overlay on a directory of the machine, so that changes of it stay in memory.
fn overlay(directory: &Path) {
    let (memory, nothing) = (Path::new("/mnt"), None::<&str>);
    mount(Some("tmpfs"), memory, Some("tmpfs"), MsFlags::empty(), nothing).expect("memory for files");
    let [upper, work] = ["upper", "work"].map(|name| memory.join(name));
    fs::create_dir(&upper).and_then(|()| fs::create_dir(&work)).expect("directories of the overlay");
    let options = format!("lowerdir={},upperdir={},workdir={}", directory.display(), upper.display(), work.display());
    mount(Some("overlay"), directory, Some("overlay"), MsFlags::empty(), Some(options.as_str())).expect("an overlay");
    // The overlay keeps the tmpfs in use. The machine's own directory is visible again.
    umount2(memory, MntFlags::MNT_DETACH).expect("the overlay's memory is unmounted");
}

/// Copies a file of `deploy/` to `destination`.
///
/// # Panics
/// It cannot be copied.
pub fn copy_deployed(file: &str, destination: &str) {
    fs::create_dir_all(Path::new(destination).parent().expect("a directory")).expect("a directory for it");
    fs::copy(deploy_file(file), destination).expect("the file is copied");
}
