//! Id-mapped mounts, which translate the owners of a file system.

use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::Mount;
use rustix::io::Errno;

use crate::container::namespaces::user::{IdMaps, UserNamespaces};
use crate::error::Error;
use crate::sys::mount::{self as sys_mount, MountAttr};

/// The id mapping of a mount.
#[derive(Debug)]
pub(crate) struct IdMapping {
    /// The mount's name in messages.
    name: String,
    maps: IdMaps,
    /// Whether the mounts below it are mapped, too.
    recursive: bool,
    tree: Option<OwnedFd>,
}

impl IdMapping {
    /// Checks the id mapping of a mount; `None` if it has none. `option` is `Some(false)` for the option `idmap` and
    /// `Some(true)` for `ridmap`. Without mappings of the mount's own, those of the container's user namespace apply.
    pub(crate) fn new(
        mount: &Mount,
        is_bind: bool,
        option: Option<bool>,
        container: Option<&IdMaps>,
    ) -> Result<Option<Self>, Error> {
        let maps = IdMaps::of_mount(mount);
        if maps.is_none() && option.is_none() {
            return Ok(None);
        }
        let name = format!("mount {}", mount.destination().display());
        if !is_bind {
            return Err(Error::invalid(name, "id-mapped mounts are only supported for bind-mounts"));
        }
        match maps.or_else(|| container.cloned()).filter(IdMaps::are_complete) {
            Some(maps) => Ok(Some(Self { name, maps, recursive: option.unwrap_or(false), tree: None })),
            None => Err(Error::invalid(name, "id-mapped mounts must have both uid and gid mappings specified")),
        }
    }

    /// In the agent: applies the mapping to `tree`, a tree that is not attached, for [`IdMapping::tree`]. This needs
    /// privileges over its file system, which a process in a user namespace lacks.
    pub(crate) fn apply(&mut self, namespaces: &mut UserNamespaces<'_>, tree: OwnedFd) -> Result<(), Error> {
        let namespace = namespaces.get_or_make(&self.maps, &self.name)?;
        sys_mount::mount_setattr(tree.as_fd(), self.recursive, &MountAttr::id_mapping(namespace))
            .map_err(Error::at(format!("map the users and groups of {}", self.name)))?;
        self.tree = Some(tree);
        Ok(())
    }

    /// A descriptor of the mapped tree.
    pub(crate) fn tree(&self) -> rustix::io::Result<OwnedFd> {
        let tree = self.tree.as_ref().ok_or(Errno::BADF)?;
        rustix::io::fcntl_dupfd_cloexec(tree, 0)
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, MountBuilder};

    use super::*;

    fn map() -> Vec<LinuxIdMapping> {
        vec![LinuxIdMappingBuilder::default().container_id(0_u32).host_id(1000_u32).size(1_u32).build().unwrap()]
    }

    fn check(mount: &Mount, option: Option<bool>, container: Option<&IdMaps>) -> Result<Option<bool>, String> {
        let checked = IdMapping::new(mount, mount.source().is_some(), option, container);
        checked.map(|mapping| mapping.map(|mapping| mapping.recursive)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_mapping_or_an_option_makes_a_mount_id_mapped() {
        let bind = || MountBuilder::default().destination("/x").source("/y");
        let (plain, own) = (bind().build().unwrap(), bind().uid_mappings(map()).gid_mappings(map()).build().unwrap());
        let container = IdMaps::of_mount(&own);
        let container = container.as_ref();
        assert_eq!(check(&plain, None, container), Ok(None));
        assert_eq!(check(&own, None, None), Ok(Some(false)));
        assert_eq!(check(&own, Some(true), None), Ok(Some(true)));
        assert_eq!(check(&plain, Some(true), container), Ok(Some(true)));
        let mut half = own.clone();
        half.set_gid_mappings(None);
        let incomplete = "mount /x: id-mapped mounts must have both uid and gid mappings specified";
        assert_eq!(check(&plain, Some(false), None).unwrap_err(), incomplete);
        assert_eq!(check(&half, None, container).unwrap_err(), incomplete);
        let mut other = own;
        other.set_source(None);
        let other = check(&other, None, None).unwrap_err();
        assert_eq!(other, "mount /x: id-mapped mounts are only supported for bind-mounts");
    }
}
