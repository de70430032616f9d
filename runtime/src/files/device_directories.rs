//! Device directories, such as `/dev`. Where a bind mount would show the host's devices, the container gets the guest's.
//!
//! A device node refers to a device of the kernel that opens it. Terminals, message queues and huge pages belong to a kernel as well.
//! All other mounts of the host in such a directory, such as `/dev/shm`, are shared like any other directory.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{FsType, HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};
use oci_spec::runtime::{Mount, Spec};

use crate::host::mounts::{HostMount, HostMounts, path_of};
use crate::spec::mounts::{is_recursive, options};

/// The device directory of a host.
const HOST_DEVICES: &str = "/dev";

/// File system magic of ramfs, which holds `/dev` if the host's kernel has no tmpfs, of devpts and of mqueue; see `statfs(2)`.
const OTHER_MAGIC: [FsType; 3] = [FsType(0x8584_58f6), FsType(0x1cd1), FsType(0x1980_0202)];

/// What the guest mounts instead of a directory of the host.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Replacement {
    /// The guest's device directory, or the directory at this path below it.
    Devices(PathBuf),
    Terminals,
    MessageQueues,
    HugePages,
}

/// A mount that results from a bind mount.
#[derive(Debug)]
pub(crate) enum Expanded {
    /// A bind mount of files of the host.
    Host(Mount),
    /// A mount of the guest's devices or of a new file system.
    Guest(Mount),
}

/// Expands `mount`, a bind mount of the directory `directory`, into the mount itself and those to make below it, in order.
///
/// # Errors
///
/// Fails if the mounts of the host or the file system of `directory` cannot be read.
pub(crate) fn expand(mount: Mount, directory: &OwnedFd, spec: &Spec) -> io::Result<Vec<Expanded>> {
    let recursive = is_recursive(&mount);
    if !recursive && !may_be_kernel_specific(directory)? {
        return Ok(vec![Expanded::Host(mount)]);
    }
    let (mounts, source) = (HostMounts::read()?, path_of(directory)?);
    let replacement = mounts.of(directory)?.and_then(|host| Replacement::of(host, &source));
    let below = if recursive { mounts.below(directory)? } else { Vec::new() };
    // Each path, parents first, with whether the guest's replacement is mounted there.
    let mut replaced = vec![(PathBuf::new(), replacement.is_some())];
    let mut all = match replacement {
        Some(replacement) => replacement.mounts(&mount, Path::new(""), &below, spec),
        None => vec![Expanded::Host(mount.clone())],
    };
    for (path, host) in &below {
        let parent = replaced.iter().rfind(|(parent, _)| path.starts_with(parent));
        let is_parent_replaced = parent.is_some_and(|(_, is_replaced)| *is_replaced);
        let replacement = Replacement::of(host, &host.point);
        replaced.push((path.clone(), replacement.is_some()));
        match replacement {
            Some(replacement) => all.extend(replacement.mounts(&mount, path, &below, spec)),
            None if is_parent_replaced => all.push(Expanded::Host(mount_at(&mount, path, host.point.clone()))),
            None => {}
        }
    }
    Ok(all)
}

/// Whether the file system may be one that the guest replaces. `statfs(2)` does not distinguish devtmpfs from tmpfs.
fn may_be_kernel_specific(directory: &OwnedFd) -> io::Result<bool> {
    let kind = fstatfs(directory)?.filesystem_type();
    Ok([TMPFS_MAGIC, HUGETLBFS_MAGIC].contains(&kind) || OTHER_MAGIC.contains(&kind))
}

impl Replacement {
    /// The replacement of the directory at `path` in the mount `host`, if it has one.
    fn of(host: &HostMount, path: &Path) -> Option<Self> {
        match host.kind.as_str() {
            "devtmpfs" => Some(Self::devices(host, path)),
            // If vmrt itself runs in a container, `/dev` is a tmpfs.
            "tmpfs" if host.point == Path::new(HOST_DEVICES) => Some(Self::devices(host, path)),
            "devpts" => Some(Self::Terminals),
            "mqueue" => Some(Self::MessageQueues),
            "hugetlbfs" => Some(Self::HugePages),
            _ => None,
        }
    }

    fn devices(host: &HostMount, path: &Path) -> Self {
        let below = path.strip_prefix(&host.point).unwrap_or(Path::new(""));
        Self::Devices(host.root.strip_prefix("/").unwrap_or(&host.root).join(below))
    }

    /// The mounts that make the replacement appear at `path` below the destination of `mount`. A whole `/dev` also gets a
    /// devpts if `below` has none: either the host has none mounted in its `/dev`, or `mount` is not recursive.
    fn mounts(&self, mount: &Mount, path: &Path, below: &[(PathBuf, &HostMount)], spec: &Spec) -> Vec<Expanded> {
        let bind = |source: PathBuf| Expanded::Guest(mount_at(mount, path, source));
        match self {
            Self::Devices(directory) => {
                let devices = bind(Path::new(agent::DEVICES_DIR).components().chain(directory.components()).collect());
                let pts = path.join("pts");
                let needs_terminals = directory.as_os_str().is_empty() && below.iter().all(|(other, _)| *other != pts);
                let terminals = needs_terminals.then(|| Expanded::Guest(terminals(mount, &pts, spec)));
                [devices].into_iter().chain(terminals).collect()
            }
            Self::Terminals => vec![Expanded::Guest(terminals(mount, path, spec))],
            Self::MessageQueues => vec![Expanded::Guest(file_system(mount, path, "mqueue", &["nodev"]))],
            Self::HugePages => vec![bind(agent::HUGE_PAGES_DIR.into())],
        }
    }
}

/// A copy of `mount` with another source, at `path` below its destination.
pub(crate) fn mount_at(mount: &Mount, path: &Path, source: PathBuf) -> Mount {
    let mut other = mount.clone();
    other.set_source(Some(source));
    if !path.as_os_str().is_empty() {
        other.set_destination(mount.destination().join(path));
    }
    other
}

/// A new devpts at `path` below the destination of `mount`. Its terminals belong to group 5, as on every system, if the container
/// has that group.
fn terminals(mount: &Mount, path: &Path, spec: &Spec) -> Mount {
    let groups = spec.linux().as_ref().and_then(|linux| linux.gid_mappings().as_deref()).unwrap_or_default();
    let has_group =
        groups.is_empty() || groups.iter().any(|map| map.container_id() <= 5 && 5 - map.container_id() < map.size());
    let options: &[_] =
        if has_group { &["ptmxmode=0666", "mode=0620", "gid=5"] } else { &["ptmxmode=0666", "mode=0620"] };
    file_system(mount, path, "devpts", options)
}

/// A new file system of the guest at `path` below the destination of `mount`. It is read-only if `mount` is.
fn file_system(mount: &Mount, path: &Path, kind: &str, extra_options: &[&str]) -> Mount {
    let mut new = mount_at(mount, path, kind.into());
    let read_only = options(mount).filter(|option| matches!(*option, "ro" | "rro")).map(|_| "ro");
    let all = ["nosuid", "noexec"].into_iter().chain(extra_options.iter().copied()).chain(read_only);
    let all = all.map(str::to_owned).collect();
    new.set_typ(Some(kind.into())).set_options(Some(all));
    new
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec() -> Spec {
        serde_json::from_str(crate::spec::STARTER).unwrap()
    }

    fn bind(options: &[&str]) -> Mount {
        let mount = json!({"destination": "/d", "source": "/s", "type": "bind", "options": options});
        serde_json::from_value(mount).unwrap()
    }

    fn host_mount(kind: &str, root: &str, point: &str) -> HostMount {
        HostMount::parse(&format!("1 1 0:1 {root} {point} rw - {kind} none rw")).unwrap()
    }

    /// Whether each mount is the guest's, its destination and its source.
    fn summary(all: &[Expanded]) -> Vec<(bool, String, String)> {
        let summarize = |one: &Expanded| {
            let (guest, Expanded::Host(mount) | Expanded::Guest(mount)) = (matches!(one, Expanded::Guest(_)), one);
            let source = mount.source().as_ref().unwrap().display().to_string();
            (guest, mount.destination().display().to_string(), source)
        };
        all.iter().map(summarize).collect()
    }

    #[test]
    fn devices_and_terminals_have_replacements_and_other_file_systems_have_none() {
        let replacement = |mount: &HostMount, path: &str| Replacement::of(mount, Path::new(path));
        let devices = |path: &str| Some(Replacement::Devices(path.into()));
        assert_eq!(replacement(&host_mount("devtmpfs", "/", "/dev"), "/dev"), devices(""));
        assert_eq!(replacement(&host_mount("devtmpfs", "/", "/dev"), "/dev/net"), devices("net"));
        assert_eq!(
            replacement(&host_mount("devtmpfs", "/disk", "/mnt/disks"), "/mnt/disks/by-id"),
            devices("disk/by-id")
        );
        assert_eq!(replacement(&host_mount("tmpfs", "/", "/dev"), "/dev/net"), devices("net"));
        assert_eq!(replacement(&host_mount("tmpfs", "/", "/dev/shm"), "/dev/shm"), None);
        assert_eq!(replacement(&host_mount("devpts", "/", "/dev/pts"), "/dev/pts"), Some(Replacement::Terminals));
        assert_eq!(replacement(&host_mount("ext4", "/", "/"), "/dev"), None);
    }

    #[test]
    fn a_whole_device_directory_gets_one_devpts() {
        let (mount, root) = (bind(&["rbind", "ro"]), Path::new(""));
        let whole = Replacement::Devices(PathBuf::new());
        let devices = (true, "/d".to_owned(), agent::DEVICES_DIR.to_owned());
        let mounts = whole.mounts(&mount, root, &[], &spec());
        assert_eq!(summary(&mounts), [devices.clone(), (true, "/d/pts".into(), "devpts".into())]);
        let Expanded::Guest(terminals) = &mounts[1] else { panic!("a mount of the host") };
        assert_eq!(
            serde_json::to_value(terminals.options()).unwrap(),
            json!(["nosuid", "noexec", "ptmxmode=0666", "mode=0620", "gid=5", "ro"])
        );
        let pts = host_mount("devpts", "/", "/dev/pts");
        assert_eq!(summary(&whole.mounts(&mount, root, &[("pts".into(), &pts)], &spec())), [devices]);
        let net = Replacement::Devices("net".into()).mounts(&mount, root, &[], &spec());
        assert_eq!(summary(&net), [(true, "/d".into(), format!("{}/net", agent::DEVICES_DIR))]);
    }

    #[test]
    fn terminals_belong_to_group_5_only_if_the_container_has_it() {
        let with = |map: Value| {
            let mut spec = serde_json::to_value(spec()).unwrap();
            spec["linux"]["gidMappings"] = map;
            let mount = terminals(&bind(&[]), Path::new("pts"), &serde_json::from_value(spec).unwrap());
            mount.options().as_ref().unwrap().contains(&"gid=5".to_owned())
        };
        let map = |id: u32, size: u32| json!({"containerID": id, "hostID": 1000, "size": size});
        assert!(with(json!([])) && with(json!([map(0, 1), map(1, 5)])));
        assert!(!with(json!([map(0, 5)])) && !with(json!([map(6, 9)])));
    }

    #[test]
    fn a_directory_without_devices_stays_a_mount_of_the_host() {
        let directory = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(std::fs::File::open(directory.path()).unwrap());
        for options in [&["bind"], &["rbind"]] {
            let all = expand(bind(options), &fd, &spec()).unwrap();
            assert_eq!(summary(&all), [(false, "/d".into(), "/s".into())]);
        }
    }
}
