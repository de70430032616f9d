//! Id-mapped mounts: what a specification may ask for, and which mounts of the host `ridmap` reaches.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, Mount, Spec};

use crate::bundle::BundleError;
use crate::host_mounts::HostMounts;
use crate::shares::{is_bind, options};

/// Checks every mount's mappings.
pub(crate) fn check(spec: &Spec) -> Result<(), BundleError> {
    let linux = spec.linux().as_ref();
    let container = linux.is_some_and(|linux| is_some(linux.uid_mappings()) && is_some(linux.gid_mappings()));
    spec.mounts().iter().flatten().try_for_each(|mount| check_mount(mount, container))
}

/// `container` is whether the container itself has mappings, which are the mount's where that has none.
fn check_mount(mount: &Mount, container: bool) -> Result<(), BundleError> {
    let own = [mount.uid_mappings(), mount.gid_mappings()].map(is_some);
    let complete = if own == [false, false] { container } else { own == [true, true] };
    let invalid = |reason| Err(BundleError::Mount { destination: mount.destination().clone(), reason });
    match () {
        () if own == [false, false] && !options(mount).any(|option| matches!(option, "idmap" | "ridmap")) => Ok(()),
        () if !is_bind(mount) => invalid("id-mapped mounts are only supported for bind-mounts"),
        () if !complete => invalid("id-mapped mounts must have both uid and gid mappings specified"),
        () => Ok(()),
    }
}

fn is_some(mappings: &Option<Vec<LinuxIdMapping>>) -> bool {
    mappings.as_ref().is_some_and(|list| !list.is_empty())
}

/// Where the host has mounts below `place`, the source of a mount, if the owners of these are to be mapped as well. The guest
/// meets them one by one, when somebody comes across them, and then knows nothing of mappings.
pub(crate) fn mounts_below(place: &OwnedFd, mount: &Mount) -> io::Result<Vec<PathBuf>> {
    let mapped = options(mount).rfind(|option| matches!(*option, "idmap" | "ridmap"));
    if mapped != Some("ridmap") || !options(mount).any(|option| option == "rbind") {
        return Ok(Vec::new());
    }
    Ok(HostMounts::read()?.below(place)?.into_iter().map(|(path, _)| path).collect())
}

/// The mount that maps the owners of what is mounted at `path` below a mount's source.
pub(crate) fn mount_below(mount: &Mount, path: &Path) -> Mount {
    let mut below = mount.clone();
    below.set_destination(mount.destination().join(path));
    below.set_source(mount.source().as_ref().map(|source| source.join(path)));
    for option in below.options_mut().iter_mut().flatten().filter(|option| *option == "rbind") {
        *option = "bind".into();
    }
    below
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxIdMappingBuilder, MountBuilder};

    use super::*;

    fn map() -> Vec<LinuxIdMapping> {
        vec![LinuxIdMappingBuilder::default().container_id(0_u32).host_id(1000_u32).size(1_u32).build().unwrap()]
    }

    fn bind(options: &[&str]) -> MountBuilder {
        let options = options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>();
        MountBuilder::default().destination("/x").source("/y").typ("bind").options(options)
    }

    fn message(mount: MountBuilder, container: bool) -> Option<String> {
        of(&mount.build().unwrap(), container)
    }

    fn of(mount: &Mount, container: bool) -> Option<String> {
        check_mount(mount, container).err().map(|error| error.to_string())
    }

    #[test]
    fn mappings_are_complete_and_of_bind_mounts() {
        let both = |mount: MountBuilder| mount.uid_mappings(map()).gid_mappings(map());
        assert_eq!(message(bind(&["rbind"]), false), None);
        assert_eq!(message(both(bind(&["rbind"])), false), None);
        assert_eq!(message(bind(&["rbind", "ridmap"]), true), None);
        let incomplete = "invalid mount /x: id-mapped mounts must have both uid and gid mappings specified";
        assert_eq!(message(bind(&["rbind", "idmap"]), false).as_deref(), Some(incomplete));
        let mut half = both(bind(&[])).build().unwrap();
        half.set_gid_mappings(None);
        assert_eq!(of(&half, true).as_deref(), Some(incomplete));
        let other = "invalid mount /x: id-mapped mounts are only supported for bind-mounts";
        assert_eq!(message(both(bind(&[]).typ("tmpfs")), true).as_deref(), Some(other));
        assert_eq!(message(both(bind(&["remount", "bind"])), true).as_deref(), Some(other));
        assert_eq!(message(bind(&["ridmap"]).typ("proc"), true).as_deref(), Some(other));
    }

    #[test]
    fn mounts_below_are_reached_by_ridmap_alone() {
        let root = OwnedFd::from(std::fs::File::open("/").unwrap());
        let below = |options: &[&str]| mounts_below(&root, &bind(options).build().unwrap()).unwrap();
        assert!(below(&["rbind"]).is_empty());
        assert!(below(&["rbind", "ridmap", "idmap"]).is_empty());
        assert!(below(&["bind", "ridmap"]).is_empty());
        assert!(below(&["rbind", "ridmap"]).contains(&"proc".into()));
        let mount = mount_below(&bind(&["rbind", "ridmap", "ro"]).build().unwrap(), Path::new("a/b"));
        assert_eq!(
            (mount.destination().as_path(), mount.source().as_deref()),
            (Path::new("/x/a/b"), Some(Path::new("/y/a/b")))
        );
        assert_eq!(mount.options().as_ref().unwrap(), &["bind", "ridmap", "ro"]);
    }
}
