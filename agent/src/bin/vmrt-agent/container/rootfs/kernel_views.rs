//! A container's own proc, sysfs and cgroup2 as sources of bind mounts.
//!
//! Each such source is a new mount, made in the container's namespaces. So a proc shows the processes of the container,
//! not those of the guest, as one that the specification mounts by its type.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use crate::container::rootfs::mount_trees;
use crate::error::Error;
use crate::machine::file_systems;
use crate::sys::files;

/// Whether `source` is one of the container's own file systems, or a path in one.
pub(crate) fn is_source(source: &Path) -> bool {
    source.starts_with(agent::KERNEL_VIEWS_DIR)
}

/// In the agent: makes the directory that [`open`] mounts on.
pub(crate) fn prepare() -> Result<(), Error> {
    files::make_directories(Path::new(agent::KERNEL_VIEWS_DIR))
}

/// In the container's namespaces, while the guest's own paths are accessible: a mount of `source`, not attached.
pub(crate) fn open(source: &Path) -> Result<OwnedFd, Error> {
    let (kind, path) = parse(source)?;
    match file_systems::make_detached(kind) {
        Ok(mount) if path.as_os_str().is_empty() => Ok(mount),
        Ok(mount) => open_path(&mount, kind, path),
        // A container in a user namespace of its own may not own the network namespace, which decides about a sysfs.
        Err(Error::System { source: Errno::PERM, .. }) if kind == "sysfs" => {
            mount_trees::clone_tree(&Path::new("/sys").join(path), false)
        }
        Err(error) => Err(error),
    }
}

/// The type of the file system, and the path in it.
fn parse(source: &Path) -> Result<(&'static str, &Path), Error> {
    let below = source.strip_prefix(agent::KERNEL_VIEWS_DIR).unwrap_or(source);
    let known = ["proc", "sysfs", "cgroup2"].into_iter().find_map(|kind| Some((kind, below.strip_prefix(kind).ok()?)));
    known
        .ok_or_else(|| Error::invalid(format!("mounts: source {}", source.display()), "is no file system of the guest"))
}

/// A copy of `path` in `mount`, a file system of type `kind`. Before Linux 6.15, only a mount that is attached can be
/// copied in part.
fn open_path(mount: &OwnedFd, kind: &str, path: &Path) -> Result<OwnedFd, Error> {
    let place = Path::new(agent::KERNEL_VIEWS_DIR);
    move_mount(mount, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(Error::on("mount on", place))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let tree = open_tree(CWD, place.join(path), flags);
    unmount(place, UnmountFlags::DETACH).map_err(Error::on("unmount", place))?;
    tree.map_err(Error::on("open the guest's", Path::new(kind).join(path)))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags, openat};
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    use rustix::thread::{UnshareFlags, unshare_unsafe};

    use super::*;

    #[test]
    fn a_source_is_a_file_system_and_a_path_in_it() {
        let parse = |path: &str| parse(Path::new(path)).map(|(kind, path)| (kind, path.display().to_string())).ok();
        assert_eq!(parse("/run/vmrt/kernel/proc"), Some(("proc", String::new())));
        assert_eq!(parse("/run/vmrt/kernel/sysfs/class/net"), Some(("sysfs", "class/net".into())));
        assert_eq!(parse("/run/vmrt/kernel/debugfs"), None);
        assert_eq!(parse("/run/vmrt/kernel"), None);
        assert!(is_source(Path::new("/run/vmrt/kernel/proc")) && !is_source(Path::new("/run/vmrt/kernels")));
    }
    #[test]
    fn a_path_in_a_file_system_is_opened_and_nothing_stays_mounted() {
        let thread = std::thread::spawn(|| {
            // SAFETY: the table of descriptors stays shared with the other threads.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None).unwrap();
            prepare().unwrap();
            let open_in = |source: &str, name: &str| {
                let tree = open(&Path::new(agent::KERNEL_VIEWS_DIR).join(source)).unwrap();
                openat(&tree, name, OFlags::PATH, Mode::empty()).map(drop)
            };
            for (source, name) in [("proc", "self"), ("proc/sys/kernel", "random"), ("sysfs/class", "net")] {
                open_in(source, name).unwrap();
            }
            assert_eq!(open_in("proc/sys/kernel", "self"), Err(Errno::NOENT), "the tree begins at the path");
            let error = open(&Path::new(agent::KERNEL_VIEWS_DIR).join("proc/none")).unwrap_err();
            assert_eq!(error.to_string(), "open the guest's proc/none");
            assert_eq!(std::fs::read_dir(agent::KERNEL_VIEWS_DIR).unwrap().count(), 0, "nothing is mounted");
        });
        thread.join().unwrap();
    }
}
