//! The root file system of a container: its mounts and devices, how to enter it, and its masked and read-only paths.

pub(crate) mod copy_up;
pub(crate) mod devices;
pub(crate) mod id_mapping;
pub(crate) mod kernel_views;
pub(crate) mod mount_options;
pub(crate) mod mount_trees;
pub(crate) mod mounts;
pub(crate) mod paths;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, move_mount, unmount,
};

use crate::error::Error;
use crate::sys::mount::{self as sys_mount, MountAttr};

/// The specification's `root` and the properties that concern it.
#[derive(Debug)]
pub(crate) struct Rootfs {
    /// Its path in the guest.
    pub(crate) path: PathBuf,
    /// Whether it is read-only.
    pub(crate) read_only: bool,
    /// Propagation: `MS_*`, and whether it applies to all mounts below. `None` leaves the kernel's default.
    pub(crate) propagation: Option<(u64, bool)>,
    /// Masked paths.
    pub(crate) masked: Vec<PathBuf>,
    /// Read-only paths.
    pub(crate) read_only_paths: Vec<PathBuf>,
}

impl Rootfs {
    /// Parses `linux.rootfsPropagation`.
    pub(crate) fn parse_propagation(name: &str) -> Result<Option<(u64, bool)>, Error> {
        let (recursive, kind) = name.strip_prefix('r').map_or((false, name), |kind| (true, kind));
        let kind = match kind {
            "" if !recursive => return Ok(None),
            "shared" => libc::MS_SHARED,
            "slave" => libc::MS_SLAVE,
            "private" => libc::MS_PRIVATE,
            "unbindable" => libc::MS_UNBINDABLE,
            _ => return Err(Error::invalid("linux.rootfsPropagation", format!("{name} is not known"))),
        };
        Ok(Some((kind, recursive)))
    }

    fn open(&self) -> Result<OwnedFd, Error> {
        let tree = mount_trees::clone_tree(&self.path, true)?;
        let kind = rustix::fs::fstat(&tree).map_err(Error::on("examine", &self.path))?;
        match FileType::from_raw_mode(kind.st_mode) {
            FileType::Directory => Ok(tree),
            _ => Err(Error::on("enter", &self.path)(Errno::NOTDIR)),
        }
    }

    /// Mounts a copy of the tree at the root's path on that path. Returns the copy, the future root.
    pub(crate) fn attach(&self) -> Result<OwnedFd, Error> {
        let tree = self.open()?;
        move_mount(&tree, "", CWD, &self.path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(Error::on("mount the root on", &self.path))?;
        Ok(tree)
    }

    /// Makes `tree` the root of the mount namespace and unmounts the old root. Returns the new root.
    pub(crate) fn enter(&self, tree: &OwnedFd) -> Result<OwnedFd, Error> {
        rustix::process::fchdir(tree).map_err(Error::on("enter", &self.path))?;
        // With identical arguments the old root is mounted on top of the new one, and needs no directory in it.
        rustix::process::pivot_root(".", ".").map_err(Error::on("pivot_root to", &self.path))?;
        unmount(".", UnmountFlags::DETACH).map_err(Error::at("unmount the old root"))?;
        rustix::process::chdir("/").map_err(Error::at("enter the new root"))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open("/", flags, Mode::empty()).map_err(Error::at("open the new root"))
    }

    /// Masks paths and makes paths read-only. The guest's own paths have to be accessible.
    pub(crate) fn restrict(&self, root: BorrowedFd<'_>) -> Result<(), Error> {
        for path in &self.read_only_paths {
            make_read_only(root, path).map_err(Error::on("make read-only", path))?;
        }
        // The container's `/dev/null` may be another file, so this is the guest's.
        let null = mount_trees::clone_tree(Path::new("/dev/null"), false)?;
        let (mut file, mut directory) = (Cover { mount: null, attached: false }, None);
        for path in &self.masked {
            mask(root, path, &mut file, &mut directory).map_err(Error::on("mask", path))?;
        }
        Ok(())
    }

    /// Makes the last changes to the root's own mount.
    pub(crate) fn finish(&self, root: BorrowedFd<'_>) -> Result<(), Error> {
        if let Some((propagation, recursive)) = self.propagation {
            sys_mount::mount_setattr(root, recursive, &MountAttr::propagation(propagation))
                .map_err(Error::at("set the root's mount propagation"))?;
        }
        if self.read_only {
            sys_mount::make_read_only(root, false).map_err(Error::at("make the root read-only"))?;
        }
        Ok(())
    }
}

/// Opens a path; `None` if it does not exist and so needs no restriction.
fn open_existing(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<Option<OwnedFd>> {
    match paths::open(root, path, OFlags::PATH) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

fn make_read_only(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<()> {
    let Some(place) = open_existing(root, path)? else { return Ok(()) };
    let tree = mount_trees::clone_tree_at(place.as_fd(), true)?;
    sys_mount::make_read_only(tree.as_fd(), true)?;
    mount_trees::attach(tree.as_fd(), place.as_fd())
}

/// The mount that covers masked paths. The first path gets the mount itself, further ones get copies of it.
struct Cover {
    mount: OwnedFd,
    attached: bool,
}

impl Cover {
    fn attach_to(&mut self, place: BorrowedFd<'_>) -> rustix::io::Result<()> {
        if self.attached {
            let copy = mount_trees::clone_tree_at(self.mount.as_fd(), false)?;
            return mount_trees::attach(copy.as_fd(), place);
        }
        self.attached = true;
        mount_trees::attach(self.mount.as_fd(), place)
    }
}

/// Covers a directory by an empty read-only one, and any other file by the null device.
fn mask(root: BorrowedFd<'_>, path: &Path, file: &mut Cover, directory: &mut Option<Cover>) -> rustix::io::Result<()> {
    let Some(place) = open_existing(root, path)? else { return Ok(()) };
    let stat = rustix::fs::fstat(&place)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return file.attach_to(place.as_fd());
    }
    let cover = match directory {
        Some(cover) => cover,
        None => directory.insert(Cover { mount: empty_directory()?, attached: false }),
    };
    cover.attach_to(place.as_fd())
}

fn empty_directory() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", "tmpfs")?;
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_propagation_names_are_refused() {
        assert_eq!(Rootfs::parse_propagation("").unwrap(), None);
        assert_eq!(Rootfs::parse_propagation("rslave").unwrap(), Some((libc::MS_SLAVE, true)));
        assert_eq!(Rootfs::parse_propagation("shared").unwrap(), Some((libc::MS_SHARED, false)));
        assert!(Rootfs::parse_propagation("rational").is_err());
    }
}
