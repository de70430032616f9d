//! The mounts of a container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, fsconfig_create, fsconfig_reconfigure, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, fspick,
};

use crate::container::namespaces::user::{IdMaps, UserNamespaces};
use crate::container::rootfs::id_mapping::IdMapping;
use crate::container::rootfs::mount_options::MountOptions;
use crate::container::rootfs::paths::{self, Missing};
use crate::container::rootfs::{copy_up, kernel_views, mount_trees};
use crate::error::Error;
use crate::machine::guest_dev;
use crate::sys::mount::{self as sys_mount, MountAttr};

/// A mount of the specification, checked.
#[derive(Debug)]
pub(crate) struct MountPlan {
    destination: PathBuf,
    /// Type of the file system; none for a bind mount.
    kind: Option<String>,
    source: Option<PathBuf>,
    options: MountOptions,
    id_mapping: Option<IdMapping>,
}

impl MountPlan {
    /// Checks a mount. `id_maps` are the mappings of the container's user namespace.
    pub(crate) fn new(mount: &Mount, id_maps: Option<&IdMaps>) -> Result<Self, Error> {
        let destination = Path::new("/").join(mount.destination());
        if paths::split(&destination).is_none() {
            let name = format!("mounts: destination {}", mount.destination().display());
            return Err(Error::invalid(name, "is not a path below the root"));
        }
        let mut options = MountOptions::parse(mount.options().as_deref().unwrap_or_default());
        let kind = match mount.typ().as_deref() {
            _ if options.bind => None,
            Some("none") | None if options.remount => Some(String::new()),
            Some("none") | None => {
                let name = format!("mounts: type of {}", destination.display());
                return Err(Error::invalid(name, "is missing, and it is not a bind mount"));
            }
            Some("bind") => None,
            Some("cgroup") => Some("cgroup2".to_owned()),
            Some(kind) => Some(kind.to_owned()),
        };
        if kind.is_none() {
            // These options belong to a file system, which a bind mount does not change.
            options.data.retain(|(key, _)| !matches!(key.as_str(), "sync" | "dirsync" | "lazytime" | "mand"));
        }
        if kind.is_none() && !options.data.is_empty() {
            let name = format!("mounts: option {} of {}", options.data[0].0, destination.display());
            return Err(Error::invalid(name, "is not an option of a bind mount"));
        }
        if options.copy_up && kind.as_deref() != Some("tmpfs") {
            let name = format!("mounts: option tmpcopyup of {}", destination.display());
            return Err(Error::invalid(name, "is one of a tmpfs only"));
        }
        let is_bind = kind.is_none() && !options.remount;
        let id_mapping = IdMapping::new(mount, is_bind, options.id_mapped, id_maps)?;
        Ok(Self { destination, kind, source: mount.source().clone(), options, id_mapping })
    }

    /// In the agent: makes the source available if it belongs to the guest's own devices or file systems.
    pub(crate) fn prepare_source(&self) -> Result<(), Error> {
        match &self.source {
            Some(_) if self.kind.is_some() || self.options.remount => Ok(()),
            Some(source) if kernel_views::is_source(source) => kernel_views::prepare(),
            Some(source) => guest_dev::prepare_source(source),
            None => Ok(()),
        }
    }

    /// In the agent: prepares an id-mapped mount for [`MountPlan::mount`].
    pub(crate) fn prepare_id_mapping(&mut self, namespaces: &mut UserNamespaces<'_>) -> Result<(), Error> {
        let (Some(mapping), Some(source)) = (&mut self.id_mapping, &self.source) else { return Ok(()) };
        mapping.apply(namespaces, mount_trees::clone_tree(source, self.options.recursive)?)
    }

    /// Whether this is a bind mount at `path`.
    pub(crate) fn is_bind_at(&self, path: &str) -> bool {
        self.kind.is_none() && self.destination == Path::new(path)
    }

    /// Mounts it in `root`, the container's root. The guest's own paths have to be accessible, because sources of bind
    /// mounts are among them, and because a user namespace gets a proc or sysfs only where another one is visible.
    /// Returns the mount if it is to be made read-only later.
    pub(crate) fn mount(&self, root: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Error> {
        let changed = match (self.kind.as_deref(), &self.source) {
            _ if self.options.remount => self.remount(root)?,
            (None, None) => {
                let name = format!("mounts: source of {}", self.destination.display());
                return Err(Error::invalid(name, "is missing for a bind mount"));
            }
            (None, Some(source)) => {
                let tree = self.open_source(source)?;
                let missing = kind_of(tree.as_fd());
                self.attach(root, tree, missing)?
            }
            (Some(kind), _) => {
                // By default a tmpfs has the mode of the directory that it covers.
                let covered =
                    (kind == "tmpfs").then(|| paths::open(root, &self.destination, OFlags::RDONLY | OFlags::DIRECTORY));
                let mount = self.new_file_system(covered.and_then(Result::ok), kind)?;
                self.attach(root, mount, Missing::Directory)?
            }
        };
        for (change, recursive) in &self.options.propagation {
            sys_mount::mount_setattr(changed.as_fd(), *recursive, &MountAttr::propagation(*change))
                .map_err(Error::on("set mount propagation of", &self.destination))?;
        }
        Ok(Some(changed).filter(|_| self.becomes_read_only_later()))
    }

    fn open_source(&self, source: &Path) -> Result<OwnedFd, Error> {
        match &self.id_mapping {
            Some(mapping) => mapping.tree().map_err(Error::on("use the mapped mount of", source)),
            None if kernel_views::is_source(source) => kernel_views::open(source),
            None => mount_trees::clone_tree(source, self.options.recursive),
        }
    }

    /// Whether it is read-only, but devices and mount points have to be made in it first.
    fn becomes_read_only_later(&self) -> bool {
        let gets_content = self.kind.as_deref() == Some("tmpfs") || self.destination == Path::new("/dev");
        let is_new = self.kind.is_some() && !self.options.remount;
        gets_content && is_new && self.options.attributes.set & sys_mount::READ_ONLY != 0
    }
}

fn kind_of(source: BorrowedFd<'_>) -> Missing {
    match rustix::fs::fstat(source).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
        Ok(FileType::Directory) => Missing::Directory,
        _ => Missing::File,
    }
}

impl MountPlan {
    fn attach(&self, root: BorrowedFd<'_>, mount: OwnedFd, missing: Missing) -> Result<OwnedFd, Error> {
        self.apply_attributes(mount.as_fd()).map_err(Error::on("set mount options of", &self.destination))?;
        let place = self.open_mount_point(root, missing)?;
        mount_trees::attach(mount.as_fd(), place.as_fd()).map_err(Error::on("mount on", &self.destination))?;
        Ok(mount)
    }

    /// Changes the mount at the destination, and its file system if a type is given.
    fn remount(&self, root: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
        let failed = || Error::on("remount", &self.destination);
        let place = paths::open(root, &self.destination, OFlags::PATH).map_err(failed())?;
        if self.kind.is_some() {
            let flags = FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC;
            let context = fspick(place.as_fd(), "", flags).map_err(failed())?;
            self.set_options(context.as_fd()).and_then(|()| fsconfig_reconfigure(context.as_fd())).map_err(failed())?;
        }
        sys_mount::mount_setattr(place.as_fd(), false, &self.options.all_attributes()).map_err(failed())?;
        Ok(place)
    }

    /// Opens the mount point. `/proc` and `/sys` confine a container, so an image must not redirect them by a symbolic
    /// link.
    fn open_mount_point(&self, root: BorrowedFd<'_>, missing: Missing) -> Result<OwnedFd, Error> {
        let place = match self.kind.as_deref() {
            Some("proc" | "sysfs") => match paths::open_plain(root, &self.destination, OFlags::PATH) {
                Err(Errno::NOENT) => paths::open_or_make(root, &self.destination, missing),
                result => result,
            },
            _ => paths::open_or_make(root, &self.destination, missing),
        };
        place.map_err(|error| match (self.kind.as_deref(), error) {
            (Some(kind @ ("proc" | "sysfs")), Errno::LOOP | Errno::NOTDIR) => {
                let reason = format!("filesystem {kind:?} must be mounted on ordinary directory");
                Error::invalid(format!("mounts: {}", self.destination.display()), reason)
            }
            _ => Error::on("open mount point", &self.destination)(error),
        })
    }

    fn apply_attributes(&self, mount: BorrowedFd<'_>) -> rustix::io::Result<()> {
        let mut attributes = self.options.attributes;
        if self.becomes_read_only_later() {
            attributes.set &= !sys_mount::READ_ONLY;
        }
        for (recursive, attributes) in [(false, &attributes), (true, &self.options.recursive_attributes)] {
            if *attributes != MountAttr::default() {
                sys_mount::mount_setattr(mount, recursive, attributes)?;
            }
        }
        Ok(())
    }

    fn new_file_system(&self, covered: Option<OwnedFd>, kind: &str) -> Result<OwnedFd, Error> {
        let step = || format!("mount {kind} on {}", self.destination.display());
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(Error::at(step()))?;
        self.configure(context.as_fd(), covered.as_ref(), kind)
            .map_err(|error| Error::at(step() + &read_message(context.as_fd()).unwrap_or_default())(error))?;
        let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty());
        let mount = mount.map_err(Error::at(step()))?;
        if let Some(covered) = covered.filter(|_| self.options.copy_up) {
            copy_up::copy(covered.as_fd(), mount.as_fd()).map_err(Error::on("copy to a tmpfs", &self.destination))?;
        }
        Ok(mount)
    }

    fn configure(&self, context: BorrowedFd<'_>, covered: Option<&OwnedFd>, kind: &str) -> rustix::io::Result<()> {
        // `df` and `mount` show the source, and misalign their columns without one.
        fsconfig_set_string(context, "source", self.source.as_deref().unwrap_or(Path::new(kind)))?;
        if let Some(covered) = covered {
            let mode = rustix::fs::fstat(covered)?.st_mode & 0o7777;
            fsconfig_set_string(context, "mode", format!("{mode:o}"))?;
        }
        self.set_options(context)?;
        fsconfig_create(context)
    }

    fn set_options(&self, context: BorrowedFd<'_>) -> rustix::io::Result<()> {
        for (key, value) in &self.options.data {
            match value {
                Some(value) => fsconfig_set_string(context, key, value)?,
                None => fsconfig_set_flag(context, key)?,
            }
        }
        Ok(())
    }
}

/// The file system's message about an option that it refuses.
fn read_message(context: BorrowedFd<'_>) -> Option<String> {
    let mut message = [0; 256];
    let length = rustix::io::read(context, &mut message).ok()?;
    // A message starts with a letter for its level and a blank.
    let message = String::from_utf8_lossy(message.get(2..length)?).trim().to_owned();
    Some(format!(" ({message})"))
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::MountBuilder;

    use super::*;

    #[test]
    fn a_bind_mount_needs_a_source_and_refuses_file_system_options() {
        let mount = MountBuilder::default().destination("/a").options(["bind".to_owned()]).build().unwrap();
        let plan = MountPlan::new(&mount, None).unwrap();
        assert!(plan.is_bind_at("/a"));
        let root = std::fs::File::open("/").unwrap();
        assert!(plan.mount(root.as_fd()).unwrap_err().to_string().contains("source of /a"));
        let options = ["rbind".to_owned(), "size=1m".to_owned()];
        let mount = MountBuilder::default().destination("/a").source("/b").options(options).build().unwrap();
        assert!(MountPlan::new(&mount, None).unwrap_err().to_string().contains("option size of /a"));
    }

    #[test]
    fn a_cgroup_mount_has_version_2() {
        let mount = MountBuilder::default().destination("/sys/fs/cgroup").typ("cgroup").build().unwrap();
        assert_eq!(MountPlan::new(&mount, None).unwrap().kind.as_deref(), Some("cgroup2"));
    }

    #[test]
    fn tmpcopyup_is_refused_for_other_types_than_tmpfs() {
        let mount = |kind| MountBuilder::default().destination("/a").typ(kind).options(["tmpcopyup".to_owned()]);
        assert!(MountPlan::new(&mount("tmpfs").build().unwrap(), None).is_ok());
        let error = MountPlan::new(&mount("ramfs").build().unwrap(), None).unwrap_err().to_string();
        assert_eq!(error, "mounts: option tmpcopyup of /a: is one of a tmpfs only");
    }

    #[test]
    fn the_root_is_refused_as_a_destination() {
        let mount = MountBuilder::default().destination("/").typ("tmpfs").build().unwrap();
        assert!(MountPlan::new(&mount, None).is_err());
    }
}
