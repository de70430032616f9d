//! The smallest root file system: one static busybox and its applets.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use super::Error;
use super::config::ImageDefaults;
use crate::{command, initramfs};

const PACKAGE: &str = "busybox-static";

const DIRECTORIES: [(&str, u32); 8] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var/tmp", 0o1777),
];

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    user:x:1000:1000:user:/tmp:/bin/sh\n\
    nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
const GROUP: &str = "root:x:0:\ntty:x:5:\nuser:x:1000:\nnogroup:x:65534:\n";

/// Installs busybox and the few files that its applets need into `rootfs`.
pub(super) fn fill(rootfs: &Path) -> Result<ImageDefaults, Error> {
    let failed = |source| Error::Rootfs { path: rootfs.into(), source };
    create_directories(rootfs).map_err(failed)?;
    let busybox = rootfs.join("bin/busybox");
    match find_static_busybox() {
        Some(path) => fs::copy(path, &busybox).map(drop).map_err(failed)?,
        None => extract_from_debian(&busybox)?,
    }
    fs::set_permissions(&busybox, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    link_applets(&busybox, rootfs).map_err(failed)?;
    Ok(ImageDefaults { args: vec!["sh".into()], ..ImageDefaults::default() })
}

fn create_directories(rootfs: &Path) -> io::Result<()> {
    fs::create_dir_all(rootfs.join("bin"))?;
    for (name, permissions) in DIRECTORIES {
        let path = rootfs.join(name);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(permissions))?;
    }
    fs::write(rootfs.join("etc/passwd"), PASSWD)?;
    fs::write(rootfs.join("etc/group"), GROUP)
}

fn find_static_busybox() -> Option<PathBuf> {
    let candidates = ["/bin/busybox", "/usr/bin/busybox", "/bin/busybox-static"];
    let is_static =
        |path: &PathBuf| fs::read(path).is_ok_and(|program| initramfs::check_static(path, &program).is_ok());
    candidates.into_iter().map(PathBuf::from).find(is_static)
}

/// Extracts busybox from Debian's package, without installing the package.
fn extract_from_debian(busybox: &Path) -> Result<(), Error> {
    let failed = |source| Error::Rootfs { path: busybox.into(), source };
    let folder = tempfile::tempdir().map_err(failed)?;
    let mut download = Command::new("apt-get");
    command::run(download.args(["download", PACKAGE]).current_dir(folder.path()), "apt")?;
    let package = fs::read_dir(folder.path()).map_err(failed)?.next();
    let package = package.ok_or(Error::Package { package: PACKAGE, file: "archive" })?.map_err(failed)?.path();
    command::run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(folder.path()), "dpkg")?;
    let paths = ["bin/busybox", "usr/bin/busybox"].map(|path| folder.path().join(path));
    let found = paths.iter().find(|path| path.exists());
    fs::copy(found.ok_or(Error::Package { package: PACKAGE, file: "busybox" })?, busybox).map_err(failed)?;
    Ok(())
}

/// Creates the link of each applet at the path that busybox lists.
fn link_applets(busybox: &Path, rootfs: &Path) -> io::Result<()> {
    let listed = Command::new(busybox).arg("--list-full").output()?;
    for applet in String::from_utf8_lossy(&listed.stdout).lines() {
        let link = rootfs.join(applet);
        fs::create_dir_all(link.parent().unwrap_or(rootfs))?;
        match symlink("/bin/busybox", &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    match rootfs.join("bin/sh").is_symlink() {
        true => Ok(()),
        false => Err(io::Error::other("busybox has no applet sh")),
    }
}
