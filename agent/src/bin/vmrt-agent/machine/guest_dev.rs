//! The guest's own `/dev`, which some containers mount instead of the host's. All containers share one, because a
//! kernel has only one devtmpfs.

use std::path::Path;

use rustix::fs::{CWD, Gid, Mode};
use rustix::io::Errno;

use super::{file_systems, loop_devices};
use crate::error::Error;
use crate::sys::files;

/// Mount points, and directories that the kernel makes only together with the first device in them.
const DIRECTORIES: [(&str, u32); 6] =
    [("pts", 0o755), ("shm", 0o1777), ("mqueue", 0o755), ("hugepages", 0o755), ("net", 0o755), ("mapper", 0o755)];

const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Devices that every user may use, although the kernel restricts them to root.
const WORLD_ACCESSIBLE: [&str; 2] = ["fuse", "net/tun"];

/// The conventional group of disks, which owns loop devices.
const DISK: u32 = 6;

/// Mounts and fills the guest's devices or huge pages if `source`, the source of a mount, is one of them.
pub(crate) fn prepare_source(source: &Path) -> Result<(), Error> {
    if source == Path::new(agent::HUGE_PAGES_DIR) {
        return file_systems::mount_once("hugetlbfs", agent::HUGE_PAGES_DIR).map(drop);
    }
    if !source.starts_with(agent::DEVICES_DIR) {
        return Ok(());
    }
    if file_systems::mount_once("devtmpfs", agent::DEVICES_DIR)? {
        fill(Path::new(agent::DEVICES_DIR))?;
    }
    // A directory of devices that the guest does not have is empty.
    files::make_directories(source)
}

/// Makes what user space conventionally adds to a devtmpfs.
fn fill(devices: &Path) -> Result<(), Error> {
    for (name, mode) in DIRECTORIES {
        let path = devices.join(name);
        match rustix::fs::mkdir(&path, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(Error::on("make directory", &path)(error)),
        }
    }
    for (name, target) in LINKS {
        let path = devices.join(name);
        rustix::fs::symlinkat(target, CWD, &path).map_err(Error::on("make link", &path))?;
    }
    for name in WORLD_ACCESSIBLE {
        set_mode(&devices.join(name), 0o666)?;
    }
    for number in 0..loop_devices::DEFAULT_COUNT {
        loop_devices::add(number)?;
        let path = devices.join(format!("loop{number}"));
        rustix::fs::chown(&path, None, Some(Gid::from_raw(DISK))).map_err(Error::on("set the owner of", &path))?;
        set_mode(&path, 0o660)?;
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    rustix::fs::chmod(path, Mode::from_raw_mode(mode)).map_err(Error::on("set the mode of", path))
}
