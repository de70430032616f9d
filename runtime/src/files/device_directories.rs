//! Directories of devices, as `/dev`: where a bind mount would show the host's, the container gets the guest's own.
//!
//! A device's node is as good as the kernel that it is opened in, and terminals, message queues and huge pages are a kernel's own as
//! well. What else the host has mounted in such a directory, as `/dev/shm`, is shared like everything.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{FsType, HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};
use oci_spec::runtime::{Mount, Spec};

use crate::host::mounts::{HostMount, HostMounts, path_of};
use crate::spec::mounts::options;

/// Where a host has its devices.
const DEVICES: &str = "/dev";

/// What `statfs(2)` says of ramfs, which devices are in where the host's kernel has no tmpfs, of devpts and of mqueue.
const OTHER_MAGIC: [FsType; 3] = [FsType(0x8584_58f6), FsType(0x1cd1), FsType(0x1980_0202)];

/// What of the guest's stands in the place of the host's.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Own {
    /// This directory of devices.
    Devices(PathBuf),
    Terminals,
    MessageQueues,
    HugePages,
}

/// A bind mount, as it is to be made.
#[derive(Debug)]
pub(crate) enum Expanded {
    /// Of the host's files.
    Host(Mount),
    /// Of the guest's own.
    Guest(Mount),
}

/// What `mount` comes to, a bind mount of the directory `place`: itself, and what is to be mounted below it, in order.
pub(crate) fn expand(mount: Mount, place: &OwnedFd, spec: &Spec) -> io::Result<Vec<Expanded>> {
    let recursive = options(&mount).any(|option| option == "rbind");
    if !recursive && !may_be_own(place)? {
        return Ok(vec![Expanded::Host(mount)]);
    }
    let (mounts, source) = (HostMounts::read()?, path_of(place)?);
    let own = mounts.of(place)?.and_then(|at| Own::at(at, &source));
    let below = if recursive { mounts.below(place)? } else { Vec::new() };
    // Whether the guest's own are there, or files of the host again; what is above comes first.
    let mut is_own = vec![(PathBuf::new(), own.is_some())];
    let mut all = match own {
        Some(own) => own.mounts(&mount, Path::new(""), &below, spec),
        None => vec![Expanded::Host(mount.clone())],
    };
    for (path, at) in &below {
        let above = is_own.iter().rfind(|(above, _)| path.starts_with(above)).is_some_and(|(_, own)| *own);
        let own = Own::at(at, &at.point);
        is_own.push((path.clone(), own.is_some()));
        match own {
            Some(own) => all.extend(own.mounts(&mount, path, &below, spec)),
            None if above => all.push(Expanded::Host(mount_at(&mount, path, at.point.clone()))),
            None => {}
        }
    }
    Ok(all)
}

/// Whether the file system is one of those, or cannot be told from them at a glance.
fn may_be_own(place: &OwnedFd) -> io::Result<bool> {
    let kind = fstatfs(place)?.filesystem_type();
    Ok([TMPFS_MAGIC, HUGETLBFS_MAGIC].contains(&kind) || OTHER_MAGIC.contains(&kind))
}

impl Own {
    /// What stands for the directory `path` of the mount `at`, if anything.
    fn at(at: &HostMount, path: &Path) -> Option<Self> {
        match at.kind.as_str() {
            // Where vmrt is itself in a container, that has its devices in a tmpfs.
            "devtmpfs" => Some(Self::devices(at, path)),
            "tmpfs" if at.point == Path::new(DEVICES) => Some(Self::devices(at, path)),
            "devpts" => Some(Self::Terminals),
            "mqueue" => Some(Self::MessageQueues),
            "hugetlbfs" => Some(Self::HugePages),
            _ => None,
        }
    }

    fn devices(at: &HostMount, path: &Path) -> Self {
        let below = path.strip_prefix(&at.point).unwrap_or(Path::new(""));
        Self::Devices(at.root.strip_prefix("/").unwrap_or(&at.root).join(below))
    }

    /// The mounts that put it at `path` below the destination of `mount`, and terminals into a `/dev` where the host has none
    /// mounted in its own, or `mount` does not show them.
    fn mounts(&self, mount: &Mount, path: &Path, below: &[(PathBuf, &HostMount)], spec: &Spec) -> Vec<Expanded> {
        let bind = |source: PathBuf| Expanded::Guest(mount_at(mount, path, source));
        match self {
            Self::Devices(directory) => {
                let devices = bind(Path::new(agent::DEVICES_DIR).components().chain(directory.components()).collect());
                let pts = path.join("pts");
                let is_whole = directory.as_os_str().is_empty() && below.iter().all(|(other, _)| *other != pts);
                let terminals = is_whole.then(|| Expanded::Guest(terminals(mount, &pts, spec)));
                [devices].into_iter().chain(terminals).collect()
            }
            Self::Terminals => vec![Expanded::Guest(terminals(mount, path, spec))],
            Self::MessageQueues => vec![Expanded::Guest(file_system(mount, path, "mqueue", &["nodev"]))],
            Self::HugePages => vec![bind(agent::HUGE_PAGES_DIR.into())],
        }
    }
}

/// `mount`, of another source and at `path` below its destination.
fn mount_at(mount: &Mount, path: &Path, source: PathBuf) -> Mount {
    let mut other = mount.clone();
    other.set_source(Some(source));
    if !path.as_os_str().is_empty() {
        other.set_destination(mount.destination().join(path));
    }
    other
}

/// The group of terminals is 5 on every system, where the container has that group.
fn terminals(mount: &Mount, path: &Path, spec: &Spec) -> Mount {
    let groups = spec.linux().as_ref().and_then(|linux| linux.gid_mappings().as_deref()).unwrap_or_default();
    let has =
        groups.is_empty() || groups.iter().any(|map| map.container_id() <= 5 && 5 - map.container_id() < map.size());
    let own: &[_] = if has { &["ptmxmode=0666", "mode=0620", "gid=5"] } else { &["ptmxmode=0666", "mode=0620"] };
    file_system(mount, path, "devpts", own)
}

/// A new file system of the guest's at `path` below the destination of `mount`, read-only where that is.
fn file_system(mount: &Mount, path: &Path, kind: &str, own: &[&str]) -> Mount {
    let mut new = mount_at(mount, path, kind.into());
    let read_only = options(mount).filter(|option| matches!(*option, "ro" | "rro")).map(|_| "ro");
    let all = ["nosuid", "noexec"].into_iter().chain(own.iter().copied()).chain(read_only);
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

    fn at(kind: &str, root: &str, point: &str) -> HostMount {
        HostMount::parse(&format!("1 1 0:1 {root} {point} rw - {kind} none rw")).unwrap()
    }

    fn told(all: &[Expanded]) -> Vec<(bool, String, String)> {
        let tell = |one: &Expanded| {
            let (guest, Expanded::Host(mount) | Expanded::Guest(mount)) = (matches!(one, Expanded::Guest(_)), one);
            let source = mount.source().as_ref().unwrap().display().to_string();
            (guest, mount.destination().display().to_string(), source)
        };
        all.iter().map(tell).collect()
    }

    #[test]
    fn devices_terminals_queues_and_huge_pages_are_the_guests_own() {
        let own = |mount: &HostMount, path: &str| Own::at(mount, Path::new(path));
        let devices = |path: &str| Some(Own::Devices(path.into()));
        assert_eq!(own(&at("devtmpfs", "/", "/dev"), "/dev"), devices(""));
        assert_eq!(own(&at("devtmpfs", "/", "/dev"), "/dev/net"), devices("net"));
        assert_eq!(own(&at("devtmpfs", "/disk", "/mnt/disks"), "/mnt/disks/by-id"), devices("disk/by-id"));
        assert_eq!(own(&at("tmpfs", "/", "/dev"), "/dev/net"), devices("net"));
        assert_eq!(own(&at("tmpfs", "/", "/dev/shm"), "/dev/shm"), None);
        assert_eq!(own(&at("devpts", "/", "/dev/pts"), "/dev/pts"), Some(Own::Terminals));
        assert_eq!(own(&at("ext4", "/", "/"), "/dev"), None);
    }

    #[test]
    fn a_whole_directory_of_devices_has_terminals_once() {
        let (mount, root) = (bind(&["rbind", "ro"]), Path::new(""));
        let whole = Own::Devices(PathBuf::new());
        let devices = (true, "/d".to_owned(), agent::DEVICES_DIR.to_owned());
        let mounts = whole.mounts(&mount, root, &[], &spec());
        assert_eq!(told(&mounts), [devices.clone(), (true, "/d/pts".into(), "devpts".into())]);
        let Expanded::Guest(terminals) = &mounts[1] else { panic!("it is the guest's") };
        assert_eq!(
            serde_json::to_value(terminals.options()).unwrap(),
            json!(["nosuid", "noexec", "ptmxmode=0666", "mode=0620", "gid=5", "ro"])
        );
        let pts = at("devpts", "/", "/dev/pts");
        assert_eq!(told(&whole.mounts(&mount, root, &[("pts".into(), &pts)], &spec())), [devices]);
        let net = Own::Devices("net".into()).mounts(&mount, root, &[], &spec());
        assert_eq!(told(&net), [(true, "/d".into(), format!("{}/net", agent::DEVICES_DIR))]);
    }

    #[test]
    fn terminals_have_a_group_that_the_container_has() {
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
    fn what_is_no_device_stays_the_hosts() {
        let directory = tempfile::tempdir().unwrap();
        let place = OwnedFd::from(std::fs::File::open(directory.path()).unwrap());
        for options in [&["bind"], &["rbind"]] {
            let all = expand(bind(options), &place, &spec()).unwrap();
            assert_eq!(told(&all), [(false, "/d".into(), "/s".into())]);
        }
    }
}
