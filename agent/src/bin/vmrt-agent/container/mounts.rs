//! The mounts of a container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{CWD, FileType, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::container::mount_options::MountOptions;
use crate::container::paths::{self, Missing};
use crate::error::Error;
use crate::sys::{self, MountAttr};

/// A mount of the specification, checked.
#[derive(Debug)]
pub(crate) struct MountPlan {
    destination: PathBuf,
    /// Type of the file system; none for a bind mount.
    kind: Option<String>,
    source: Option<PathBuf>,
    options: MountOptions,
}

/// A mount whose source was opened while the guest's own paths were still there.
pub(crate) struct OpenedMount<'a> {
    plan: &'a MountPlan,
    bind: Option<OwnedFd>,
}

impl MountPlan {
    /// Checks a mount.
    pub(crate) fn new(mount: &Mount) -> Result<Self, Error> {
        let destination = Path::new("/").join(mount.destination());
        if paths::split(&destination).is_none() {
            let name = format!("mounts: destination {}", mount.destination().display());
            return Err(Error::invalid(name, "is no path below the root"));
        }
        if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
            let name = format!("mounts: uidMappings of {}", destination.display());
            return Err(Error::invalid(name, "id-mapped mounts are not supported"));
        }
        let options = MountOptions::parse(mount.options().as_deref().unwrap_or_default())?;
        let kind = match mount.typ().as_deref() {
            _ if options.bind => None,
            Some("bind" | "none") | None => None,
            Some("cgroup") => Some("cgroup2".to_owned()),
            Some(kind) => Some(kind.to_owned()),
        };
        if kind.is_none() && !options.data.is_empty() {
            let name = format!("mounts: option {} of {}", options.data[0].0, destination.display());
            return Err(Error::invalid(name, "is none of a bind mount"));
        }
        Ok(Self { destination, kind, source: mount.source().clone(), options })
    }

    /// Whether this mount puts a directory of the guest (and so the devices in it) at `path`.
    pub(crate) fn binds(&self, path: &str) -> bool {
        self.kind.is_none() && self.destination == Path::new(path)
    }

    /// Opens the source of a bind mount.
    pub(crate) fn open(&self) -> Result<OpenedMount<'_>, Error> {
        let bind = match (&self.kind, &self.source) {
            (Some(_), _) => None,
            (None, Some(source)) => Some(clone_tree(source, self.options.recursive)?),
            (None, None) => {
                let name = format!("mounts: source of {}", self.destination.display());
                return Err(Error::invalid(name, "a bind mount needs one"));
            }
        };
        Ok(OpenedMount { plan: self, bind })
    }
}

/// A copy of the mount `source` is in, beginning there, attached nowhere.
pub(crate) fn clone_tree(source: &Path, recursive: bool) -> Result<OwnedFd, Error> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags |= OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, source, flags).map_err(Error::on("open mount source", source))
}

/// A copy of the mount that the place `place` is in, beginning there, attached nowhere.
pub(crate) fn clone_place(place: BorrowedFd<'_>, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(place, "", flags)
}

/// Mounts `mount`, attached nowhere yet, on the place `on`.
pub(crate) fn attach(mount: BorrowedFd<'_>, on: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", on, "", flags)
}

impl OpenedMount<'_> {
    /// Mounts it in the container's root.
    pub(crate) fn mount(self, root: BorrowedFd<'_>) -> Result<(), Error> {
        let plan = self.plan;
        let (mount, missing) = match self.bind {
            Some(tree) => (tree, None),
            None => (plan.new_file_system(plan.kind.as_deref().unwrap_or_default())?, Some(Missing::Directory)),
        };
        let missing = missing.unwrap_or_else(|| missing_for(mount.as_fd()));
        plan.apply_attributes(mount.as_fd()).map_err(Error::on("set mount options of", &plan.destination))?;
        let place = plan.place(root, missing)?;
        attach(mount.as_fd(), place.as_fd()).map_err(Error::on("mount on", &plan.destination))?;
        for (change, recursive) in &plan.options.propagation {
            sys::mount_setattr(mount.as_fd(), *recursive, &MountAttr::propagation(*change))
                .map_err(Error::on("set mount propagation of", &plan.destination))?;
        }
        Ok(())
    }
}

fn missing_for(source: BorrowedFd<'_>) -> Missing {
    match rustix::fs::fstat(source).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
        Ok(FileType::Directory) => Missing::Directory,
        _ => Missing::File,
    }
}

impl MountPlan {
    /// Where to mount. `/proc` and `/sys` are the file systems a container is confined by, so an image must not be
    /// able to lead them elsewhere by a symbolic link.
    fn place(&self, root: BorrowedFd<'_>, missing: Missing) -> Result<OwnedFd, Error> {
        let place = match self.kind.as_deref() {
            Some("proc" | "sysfs") => match paths::open_plain(root, &self.destination, OFlags::PATH) {
                Err(Errno::NOENT) => paths::open_or_make(root, &self.destination, missing),
                result => result,
            },
            _ => paths::open_or_make(root, &self.destination, missing),
        };
        place.map_err(Error::on("open mount point", &self.destination))
    }

    fn apply_attributes(&self, mount: BorrowedFd<'_>) -> rustix::io::Result<()> {
        for (recursive, attributes) in [(false, &self.options.attributes), (true, &self.options.recursive_attributes)] {
            if *attributes != MountAttr::default() {
                sys::mount_setattr(mount, recursive, attributes)?;
            }
        }
        Ok(())
    }

    fn new_file_system(&self, kind: &str) -> Result<OwnedFd, Error> {
        let step = || format!("mount {kind} on {}", self.destination.display());
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(Error::at(step()))?;
        self.configure(context.as_fd())
            .map_err(|error| Error::at(step() + &explanation(context.as_fd()).unwrap_or_default())(error))?;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map_err(Error::at(step()))
    }

    fn configure(&self, context: BorrowedFd<'_>) -> rustix::io::Result<()> {
        if let Some(source) = &self.source {
            fsconfig_set_string(context, "source", source)?;
        }
        for (key, value) in &self.options.data {
            match value {
                Some(value) => fsconfig_set_string(context, key, value)?,
                None => fsconfig_set_flag(context, key)?,
            }
        }
        fsconfig_create(context)
    }
}

/// What the file system says about an option it does not take.
fn explanation(context: BorrowedFd<'_>) -> Option<String> {
    let mut message = [0; 256];
    let length = rustix::io::read(context, &mut message).ok()?;
    // A message starts with its kind: a letter and a blank.
    let message = String::from_utf8_lossy(message.get(2..length)?).trim().to_owned();
    Some(format!(" ({message})"))
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::MountBuilder;

    use super::*;

    #[test]
    fn a_bind_mount_needs_a_source_and_takes_no_data() {
        let mount = MountBuilder::default().destination("/a").options(["bind".to_owned()]).build().unwrap();
        let plan = MountPlan::new(&mount).unwrap();
        assert!(plan.binds("/a"));
        assert!(plan.open().err().unwrap().to_string().contains("source of /a"));
        let options = ["rbind".to_owned(), "size=1m".to_owned()];
        let mount = MountBuilder::default().destination("/a").source("/b").options(options).build().unwrap();
        assert!(MountPlan::new(&mount).unwrap_err().to_string().contains("option size of /a"));
    }

    #[test]
    fn a_cgroup_mount_is_one_of_version_2() {
        let mount = MountBuilder::default().destination("/sys/fs/cgroup").typ("cgroup").build().unwrap();
        assert_eq!(MountPlan::new(&mount).unwrap().kind.as_deref(), Some("cgroup2"));
    }

    #[test]
    fn the_root_is_no_destination() {
        let mount = MountBuilder::default().destination("/").typ("tmpfs").build().unwrap();
        assert!(MountPlan::new(&mount).is_err());
    }
}
