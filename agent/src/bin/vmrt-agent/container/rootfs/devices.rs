//! Device nodes and links in a container's `/dev`.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid};
use rustix::io::Errno;

use crate::container::namespaces::user::IdMaps;
use crate::container::rootfs::mount_trees;
use crate::container::rootfs::paths::{self, Missing};
use crate::error::Error;
use crate::machine::loop_devices;
use crate::sys::files;

/// A device node to make.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct DevicePlan {
    path: PathBuf,
    kind: FileType,
    number: u64,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// Directory in which the agent makes devices for containers that cannot make them: one subdirectory for each
/// container.
const NODES_DIRECTORY: &str = "/dev/containers";

/// The default devices of a container: path, major and minor number.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The default links of a container: path and target.
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

impl DevicePlan {
    /// The default devices and those of the specification. The latter replace default devices with the same path.
    pub(crate) fn with_defaults(devices: &[LinuxDevice]) -> Result<Vec<Self>, Error> {
        let given = devices.iter().map(Self::new).collect::<Result<Vec<_>, _>>()?;
        let default = DEFAULT.iter().filter(|(path, ..)| given.iter().all(|device| device.path != Path::new(path)));
        let default = default.map(|&(path, major, minor)| Self {
            path: path.into(),
            kind: FileType::CharacterDevice,
            number: rustix::fs::makedev(major, minor),
            mode: 0o666,
            uid: 0,
            gid: 0,
        });
        Ok(default.chain(given.iter().cloned()).collect())
    }

    fn new(device: &LinuxDevice) -> Result<Self, Error> {
        let invalid = |reason| Error::invalid(format!("linux.devices: {}", device.path().display()), reason);
        let kind = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
            LinuxDeviceType::B => FileType::BlockDevice,
            LinuxDeviceType::P => FileType::Fifo,
            LinuxDeviceType::A => return Err(invalid("has no type")),
        };
        if !device.path().is_absolute() || paths::split(device.path()).is_none() {
            return Err(invalid("is not an absolute path"));
        }
        let number = |number: i64| u32::try_from(number).map_err(|_| invalid("has a negative number"));
        let number = match kind {
            FileType::Fifo => 0,
            _ => rustix::fs::makedev(number(device.major())?, number(device.minor())?),
        };
        Ok(Self {
            path: device.path().clone(),
            kind,
            number,
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
        })
    }

    /// In the agent: adds the device to the guest if it exists only on demand.
    pub(crate) fn prepare(&self) -> Result<(), Error> {
        loop_devices::add_for_node(self.kind, self.number)
    }

    fn make(&self, root: BorrowedFd<'_>) -> rustix::io::Result<()> {
        let (parent, name) = paths::split(&self.path).ok_or(Errno::INVAL)?;
        let parent = paths::open_or_make_directories(root, &parent)?;
        match rustix::fs::mknodat(&parent, &name, self.kind, Mode::from_raw_mode(self.mode), self.number) {
            Err(Errno::EXIST) => return self.check_existing(parent.as_fd(), &name),
            result => result?,
        }
        if (self.uid, self.gid) == (0, 0) {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::fs::chownat(&parent, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Accepts an existing file, of the image or of a mount, only if it is the same device.
    fn check_existing(&self, parent: BorrowedFd<'_>, name: &Path) -> rustix::io::Result<()> {
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) == self.kind && stat.st_rdev == self.number {
            true => Ok(()),
            false => Err(Errno::EXIST),
        }
    }
}

/// Device nodes that the agent made for a container with a user namespace, which cannot make any. The container mounts
/// them at their paths. They are removed when dropped; the mounts remain.
#[derive(Debug)]
pub(crate) struct Nodes(PathBuf);

impl Drop for Nodes {
    fn drop(&mut self) {
        // A remaining directory matters only to a later container with the same id.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Nodes {
    /// Makes the device nodes of a container. Their owners are mapped by `maps`.
    pub(crate) fn make(container: &str, devices: &[DevicePlan], maps: &IdMaps) -> Result<Self, Error> {
        let directory = Path::new(NODES_DIRECTORY).join(container);
        files::make_directories(&directory)?;
        let nodes = Self(directory);
        for (index, device) in devices.iter().enumerate() {
            let path = nodes.0.join(index.to_string());
            rustix::fs::mknodat(CWD, &path, device.kind, Mode::from_raw_mode(device.mode), device.number)
                .map_err(Error::on("make device", &device.path))?;
            let (uid, gid) = (maps.uid(Uid::from_raw(device.uid))?, maps.gid(Gid::from_raw(device.gid))?);
            rustix::fs::chown(&path, Some(uid), Some(gid)).map_err(Error::on("set the owner of", &device.path))?;
        }
        Ok(nodes)
    }
}

/// Mounts the devices of [`Nodes::make`] in `root`, and makes links. The guest's own paths have to be accessible.
pub(crate) fn mount(root: BorrowedFd<'_>, container: &str, devices: &[DevicePlan]) -> Result<(), Error> {
    let directory = Path::new(NODES_DIRECTORY).join(container);
    for (index, device) in devices.iter().enumerate() {
        let tree = mount_trees::clone_tree(&directory.join(index.to_string()), false)?;
        let place = paths::open_or_make(root, &device.path, Missing::File);
        let mounted = place.and_then(|place| mount_trees::attach(tree.as_fd(), place.as_fd()));
        mounted.map_err(Error::on("mount device", &device.path))?;
    }
    make_links(root)
}

/// Makes the devices and the links in `root`.
pub(crate) fn make(root: BorrowedFd<'_>, devices: &[DevicePlan]) -> Result<(), Error> {
    for device in devices {
        device.make(root).map_err(Error::on("make device", &device.path))?;
    }
    make_links(root)
}

fn make_links(root: BorrowedFd<'_>) -> Result<(), Error> {
    for (path, target) in LINKS {
        make_link(root, path, target).map_err(Error::on("make link", path))?;
    }
    Ok(())
}

fn make_link(root: BorrowedFd<'_>, path: &str, target: &str) -> rustix::io::Result<()> {
    let (parent, name) = paths::split(Path::new(path)).ok_or(Errno::INVAL)?;
    let parent = paths::open_or_make_directories(root, &parent)?;
    match rustix::fs::symlinkat(target, &parent, &name) {
        Err(Errno::EXIST) if path == "/dev/ptmx" => {
            // Images may contain the device itself, which belongs to no instance of devpts.
            rustix::fs::unlinkat(&parent, &name, AtFlags::empty())?;
            rustix::fs::symlinkat(target, &parent, &name)
        }
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxDeviceBuilder;

    use super::*;

    #[test]
    fn a_device_of_the_specification_replaces_the_default_one() {
        let null = LinuxDeviceBuilder::default().path("/dev/null").typ(LinuxDeviceType::C);
        let null = null.major(1).minor(3).file_mode(0o20600_u32).build().unwrap();
        let plans = DevicePlan::with_defaults(&[null]).unwrap();
        let nulls: Vec<_> = plans.iter().filter(|plan| plan.path == Path::new("/dev/null")).collect();
        assert_eq!((nulls.len(), nulls[0].mode), (1, 0o600));
        assert_eq!(plans.len(), DEFAULT.len());
    }

    #[test]
    fn a_relative_path_or_a_negative_number_is_refused() {
        let device = |path: &str, major| {
            let device = LinuxDeviceBuilder::default().path(path).typ(LinuxDeviceType::B).major(major).minor(0);
            DevicePlan::with_defaults(&[device.build().unwrap()])
        };
        assert!(device("dev/loop0", 7).is_err());
        assert!(device("/dev/loop0", -1).is_err());
        assert!(device("/dev/loop0", 7).is_ok());
    }
}
