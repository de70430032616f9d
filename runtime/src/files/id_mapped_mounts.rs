//! Recursive id-mapped mounts: the mounts of the host below a source that `ridmap` includes.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;

use crate::files::kernel_views;
use crate::host::mounts::HostMounts;
use crate::spec::mounts::options;

/// Lists the paths of the host's mounts below `source`, relative to it, if `mount` is recursive and maps the ids of these as well.
/// Views of the host's kernel are left out, since the guest sees nothing of them.
/// Each of them needs its own mount in the guest: the guest discovers them one by one on access, and does not map their ids then.
pub(crate) fn mounts_below(source: &OwnedFd, mount: &Mount) -> io::Result<Vec<PathBuf>> {
    let mapping = options(mount).rfind(|option| matches!(*option, "idmap" | "ridmap"));
    if mapping != Some("ridmap") || !options(mount).any(|option| option == "rbind") {
        return Ok(Vec::new());
    }
    let below = HostMounts::read()?.below(source)?.into_iter().map(|(path, _)| path).collect::<Vec<_>>();
    Ok(below.into_iter().filter(|path| !kernel_views::is_at(source, path)).collect())
}

/// Returns the id-mapped mount of what the host has mounted at `path` below the source of `mount`.
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
    fn only_ridmap_includes_the_mounts_below() {
        let root = OwnedFd::from(std::fs::File::open("/").unwrap());
        let below = |options: &[&str]| mounts_below(&root, &bind(options).build().unwrap()).unwrap();
        assert!(below(&["rbind"]).is_empty());
        assert!(below(&["rbind", "ridmap", "idmap"]).is_empty());
        assert!(below(&["bind", "ridmap"]).is_empty());
        assert!(below(&["rbind", "ridmap"]).contains(&"dev".into()));
        assert!(!below(&["rbind", "ridmap"]).contains(&"proc".into()), "a view of the host's kernel");
        let mount = mount_below(&bind(&["rbind", "ridmap", "ro"]).build().unwrap(), Path::new("a/b"));
        assert_eq!(
            (mount.destination().as_path(), mount.source().as_deref()),
            (Path::new("/x/a/b"), Some(Path::new("/y/a/b")))
        );
        assert_eq!(mount.options().as_ref().unwrap(), &["bind", "ridmap", "ro"]);
    }
}
