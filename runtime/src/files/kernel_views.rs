//! Sources of bind mounts that are a view of the host's kernel, such as `/proc`.
//!
//! A container that reads them would learn of the host's processes, and of its memory. The guest's kernel has file systems of the same
//! kinds. These stand in for `/proc`, `/sys` and `/sys/fs/cgroup`. All others are refused.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag};
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use vmm::fs::kernel_view;

use crate::base::log::Log;
use crate::files::device_directories::mount_at;
use crate::host::mounts::path_of;
use crate::spec::mounts::{is_recursive, options};
use crate::spec::namespaces::has_namespace;

/// Where cgroups are mounted on a host.
const CGROUPS: &str = "/sys/fs/cgroup";

/// The file systems of the host that the guest's own stand in for: their type, and the place of the host where they are expected.
const REPLACED: [(&str, &str); 3] = [("proc", "/proc"), ("sysfs", "/sys"), ("cgroup2", CGROUPS)];

/// What the source of a bind mount is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum SourceKind {
    /// Files that the guest may get.
    Files,
    /// A view of the host's kernel. The guest makes these mounts of its own instead.
    Replaced(Vec<Mount>),
    /// A view of the host's kernel that nothing stands in for: the type of the file system.
    Refused(&'static str),
}

/// Examines `source`, the `O_PATH` descriptor of the source of the bind mount `mount`.
///
/// # Errors
///
/// Fails if the file system or the path of `source` cannot be read.
pub(crate) fn source_kind(mount: &Mount, source: &OwnedFd, stat: &FileStat, spec: &Spec) -> io::Result<SourceKind> {
    let path = path_of(source)?;
    let kind = match kernel_view(source)? {
        Some(kind) => kind,
        // With version 1 of cgroups, it is a tmpfs with the mount points of the hierarchies.
        None if path == Path::new(CGROUPS) => "cgroup2",
        None => return Ok(SourceKind::Files),
    };
    if has_other_replacement(kind, stat) {
        return Ok(SourceKind::Files);
    }
    let below = REPLACED.iter().find(|(own, _)| *own == kind).and_then(|(_, place)| path.strip_prefix(place).ok());
    let below = below
        .filter(|_| !is_id_mapped(mount))
        .and_then(|below| if kind == "proc" { in_proc(below) } else { Some(below.into()) });
    let Some(below) = below else { return Ok(SourceKind::Refused(kind)) };
    let whole = guest_mount(mount, Path::new(""), kind, &below);
    let cgroups = cgroups_below(&path).filter(|_| is_recursive(mount) && may_mount_cgroups(spec));
    let cgroups = cgroups.map(|place| guest_mount(mount, place, "cgroup2", Path::new("")));
    Ok(SourceKind::Replaced([whole].into_iter().chain(cgroups).collect()))
}

/// Whether something is at `path` below an open directory that is a view of the host's kernel.
pub(crate) fn is_at(directory: impl AsFd, path: &Path) -> bool {
    let file = openat(directory, path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
    file.is_ok_and(|file| kernel_view(file).is_ok_and(|kind| kind.is_some()))
}

/// Warns of the sources that the guest's own file systems stand in for, each with its destination.
pub(crate) fn warn(replaced: &[(PathBuf, PathBuf)], log: &Log) {
    if !replaced.is_empty() {
        let places = replaced.iter().map(|(source, place)| format!("{} at {}", source.display(), place.display()));
        let places = places.collect::<Vec<_>>().join(", ");
        log.warn(&format!("the guest's own file systems are mounted in the place of the host's: {places}"));
    }
}

/// Whether the guest gets terminals or message queues of its own as for a device directory, or devices as single files.
fn has_other_replacement(kind: &str, stat: &FileStat) -> bool {
    let is_directory = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
    kind == "devpts" || kind == "mqueue" && is_directory
}

/// Whether the mount maps ids, which none of these file systems can.
fn is_id_mapped(mount: &Mount) -> bool {
    mount.uid_mappings().is_some() || options(mount).any(|option| matches!(option, "idmap" | "ridmap"))
}

/// The path in the guest's proc for `path` in the host's. A process of the host is none of the guest's; but this one stands for the
/// caller, as in `/proc/net`, which is a link to `/proc/self/net`.
fn in_proc(path: &Path) -> Option<PathBuf> {
    let mut components = path.components();
    let first = components.next().and_then(|first| first.as_os_str().to_str()?.parse::<u32>().ok());
    match first {
        None => Some(path.to_owned()),
        Some(pid) if pid == std::process::id() => Some(Path::new("self").join(components.as_path())),
        Some(_) => None,
    }
}

/// The mount of `below` in the guest's own file system of type `kind`, at `place` below the destination of `mount`.
fn guest_mount(mount: &Mount, place: &Path, kind: &str, below: &Path) -> Mount {
    mount_at(
        mount,
        place,
        Path::new(agent::KERNEL_VIEWS_DIR).join(kind).components().chain(below.components()).collect(),
    )
}

/// Where the host's cgroups are below `path`. A recursive mount includes them.
fn cgroups_below(path: &Path) -> Option<&'static Path> {
    Path::new(CGROUPS).strip_prefix(path).ok().filter(|place| !place.as_os_str().is_empty())
}

/// Whether the container's processes may mount cgroups: they own the namespace of these.
fn may_mount_cgroups(spec: &Spec) -> bool {
    !has_namespace(spec, LinuxNamespaceType::User) || has_namespace(spec, LinuxNamespaceType::Cgroup)
}

#[cfg(test)]
mod tests {
    use nix::fcntl::open;
    use nix::sys::stat::fstat;
    use oci_spec::runtime::{LinuxIdMappingBuilder, MountBuilder};

    use super::*;

    fn spec() -> Spec {
        serde_json::from_str(crate::spec::STARTER).unwrap()
    }

    fn bind(options: &[&str]) -> Mount {
        let options = options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>();
        MountBuilder::default().destination("/host").source("/s").typ("bind").options(options).build().unwrap()
    }

    fn kind_for(mount: &Mount, path: &str) -> SourceKind {
        let source = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        source_kind(mount, &source, &fstat(&source).unwrap(), &spec()).unwrap()
    }

    /// Destination and source of each mount that stands in for `path`.
    fn replacements(options: &[&str], path: &str) -> Vec<(String, String)> {
        let SourceKind::Replaced(mounts) = kind_for(&bind(options), path) else { panic!("{path} is not replaced") };
        let text = |path: &Path| path.display().to_string();
        assert!(mounts.iter().all(|mount| *mount.options() == *bind(options).options()), "{path}");
        mounts.iter().map(|mount| (text(mount.destination()), text(mount.source().as_ref().unwrap()))).collect()
    }

    #[test]
    fn the_guests_own_file_systems_stand_in_for_those_of_the_host() {
        let one =
            |destination: &str, below: &str| (destination.to_owned(), format!("{}/{below}", agent::KERNEL_VIEWS_DIR));
        assert_eq!(replacements(&["rbind", "ro"], "/proc"), [one("/host", "proc")]);
        assert_eq!(replacements(&["bind"], "/proc/sys/kernel"), [one("/host", "proc/sys/kernel")]);
        assert_eq!(replacements(&["bind"], "/proc/meminfo"), [one("/host", "proc/meminfo")]);
        assert_eq!(replacements(&["bind"], "/proc/net"), [one("/host", "proc/self/net")], "of the caller");
        let cgroups = one("/host/fs/cgroup", "cgroup2");
        assert_eq!(replacements(&["rbind", "ro"], "/sys"), [one("/host", "sysfs"), cgroups]);
        assert_eq!(replacements(&["bind"], "/sys"), [one("/host", "sysfs")]);
        assert_eq!(replacements(&["rbind"], "/sys/kernel"), [one("/host", "sysfs/kernel")]);
        assert_eq!(replacements(&["rbind"], "/sys/fs/cgroup"), [one("/host", "cgroup2")], "version 1 or 2");
    }

    #[test]
    fn cgroups_are_included_if_the_container_owns_their_namespace() {
        let with = |kinds: &[&str]| {
            let mut spec = serde_json::to_value(spec()).unwrap();
            spec["linux"]["namespaces"] = kinds.iter().map(|kind| serde_json::json!({"type": kind})).collect();
            may_mount_cgroups(&serde_json::from_value(spec).unwrap())
        };
        assert!(with(&["mount"]) && with(&["mount", "cgroup"]) && with(&["user", "cgroup"]));
        assert!(!with(&["mount", "user"]));
    }

    #[test]
    fn other_views_of_the_hosts_kernel_are_refused() {
        assert_eq!(kind_for(&bind(&["bind"]), "/proc/1"), SourceKind::Refused("proc"));
        assert_eq!(kind_for(&bind(&["bind"]), "/proc/1/environ"), SourceKind::Refused("proc"));
        assert_eq!(kind_for(&bind(&["bind"]), "/proc/self/ns/uts"), SourceKind::Refused("nsfs"));
        assert_eq!(kind_for(&bind(&["bind", "idmap"]), "/proc"), SourceKind::Refused("proc"));
        let mut mapped = bind(&["bind"]);
        let map = LinuxIdMappingBuilder::default().host_id(1_u32).container_id(0_u32).size(1_u32).build().unwrap();
        mapped.set_uid_mappings(Some(vec![map]));
        assert_eq!(kind_for(&mapped, "/sys"), SourceKind::Refused("sysfs"));
    }

    #[test]
    fn stored_files_and_devices_are_none() {
        let directory = tempfile::tempdir().unwrap();
        for path in ["/", "/dev", "/dev/null", "/dev/pts", "/dev/shm", directory.path().to_str().unwrap()] {
            assert_eq!(kind_for(&bind(&["rbind"]), path), SourceKind::Files, "{path}");
        }
        let root = std::fs::File::open("/").unwrap();
        assert!(is_at(&root, Path::new("proc")) && !is_at(&root, Path::new("dev")) && !is_at(&root, Path::new("none")));
    }

    #[test]
    fn one_warning_names_all_sources_and_destinations() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = Log::new(Some(file.path()), crate::base::log::Format::Text, false).unwrap();
        warn(&[], &log);
        warn(&[("/proc".into(), "/host/proc".into()), ("/sys".into(), "/host/sys".into())], &log);
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert!(text.contains("in the place of the host's: /proc at /host/proc, /sys at /host/sys"), "{text}");
    }
}
