//! Id-mapped mounts: which mounts of the host `ridmap` reaches.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;

use crate::host::mounts::HostMounts;
use crate::spec::mounts::options;

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
    use oci_spec::runtime::MountBuilder;

    use super::*;

    fn bind(options: &[&str]) -> MountBuilder {
        let options = options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>();
        MountBuilder::default().destination("/x").source("/y").typ("bind").options(options)
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
