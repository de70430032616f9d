//! The user that runs vmrt: the host's root, the root of a user namespace, or another user.

use std::env;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, geteuid};
use thiserror::Error;
use vmm::machine::kvm::KVM_DEVICE;

const DEFAULT_ROOT: &str = "/run/vmrt";

/// Fields of `/proc/self/uid_map` in the initial user namespace, which maps every id to itself.
const ALL_IDS: [&str; 3] = ["0", "0", "4294967295"];

/// The id that stands for ids which a user namespace does not map: `/proc/sys/kernel/overflowuid`.
const OVERFLOW_ID: u32 = 65_534;

/// The reason why vmrt does not serve a caller.
#[derive(Debug, Error)]
pub(crate) enum CallerError {
    #[error("invalid boolean value \"{0}\" for --rootless: it is true, false or auto")]
    Flag(String),
    #[error("the path in $XDG_RUNTIME_DIR must be writable by the user: prepare {}", path.display())]
    RuntimeDir { path: PathBuf, source: io::Error },
    #[error("--systemd-cgroup is refused: it needs systemd's system manager, which only the host's root may use")]
    Systemd,
    #[error("open {KVM_DEVICE}: {hint}")]
    Kvm { hint: String, source: io::Error },
}

/// The user that runs vmrt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Caller {
    /// The host's root.
    Root,
    /// The root of a user namespace other than the initial one.
    NamespaceRoot,
    /// Any other user.
    User,
}

impl Caller {
    /// Determines the user that runs this process.
    pub(crate) fn find() -> Self {
        match geteuid().is_root() {
            false => Self::User,
            // A kernel without user namespaces does not have this file.
            true if fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !has_all_ids(&map)) => Self::NamespaceRoot,
            true => Self::Root,
        }
    }

    /// Whether a container may run without a cgroup if the caller may not create one. `flag` is the value of `--rootless`; with
    /// `auto` the caller decides.
    pub(crate) fn may_omit_cgroup(self, flag: &str) -> Result<bool, CallerError> {
        match flag {
            "" | "auto" => Ok(self != Self::Root),
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
            _ => Err(CallerError::Flag(flag.into())),
        }
    }

    /// Returns the default directory of the containers' state. Below `$XDG_RUNTIME_DIR` it is created, with the sticky bit set,
    /// which excludes it from the periodic clean-up (XDG Base Directory Specification).
    pub(crate) fn default_root(self) -> Result<PathBuf, CallerError> {
        let dir =
            env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty() && self.has_runtime_dir(env::var_os("USER")));
        let Some(dir) = dir else { return Ok(DEFAULT_ROOT.into()) };
        let path = Path::new(&dir).join("vmrt");
        let sticky = Permissions::from_mode(0o1700);
        let created = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        match created.and_then(|()| fs::set_permissions(&path, sticky)) {
            Ok(()) => Ok(path),
            Err(source) => Err(CallerError::RuntimeDir { path, source }),
        }
    }

    /// Whether `$XDG_RUNTIME_DIR` belongs to the caller. `name` is `$USER`: if it is `root` for the root of a user namespace, the
    /// environment is that of the host's root.
    fn has_runtime_dir(self, name: Option<OsString>) -> bool {
        match self {
            Self::Root => false,
            Self::NamespaceRoot => name.is_none_or(|name| name != "root"),
            Self::User => true,
        }
    }

    /// Checks that the caller may open the KVM device. Root's permission is not checked: its VMM reports any failure.
    pub(crate) fn check_kvm(self) -> Result<(), CallerError> {
        if self == Self::Root {
            return Ok(());
        }
        match File::options().read(true).write(true).open(KVM_DEVICE) {
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                let group = fs::metadata(KVM_DEVICE).map(|device| device.gid()).unwrap_or(OVERFLOW_ID);
                Err(CallerError::Kvm { hint: hint(group), source })
            }
            // The VMM reports every other failure in more detail.
            _ => Ok(()),
        }
    }
}

fn has_all_ids(map: &str) -> bool {
    map.split_whitespace().eq(ALL_IDS)
}

/// Tells which group may use a KVM device that belongs to `group`.
fn hint(group: u32) -> String {
    let name = Group::from_gid(Gid::from_raw(group)).ok().flatten().map(|group| group.name);
    match (group, name) {
        (0, _) | (OVERFLOW_ID, _) => {
            "this user may not run virtual machines: have root give the device to a group of yours".into()
        }
        (gid, Some(name)) => format!("this user may not run virtual machines: the members of group {name} ({gid}) may"),
        (gid, None) => format!("this user may not run virtual machines: the members of group {gid} may"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_initial_user_namespace_maps_all_ids() {
        assert!(has_all_ids("         0          0 4294967295\n"));
        assert!(!has_all_ids("         0       1000          1\n"));
        assert!(!has_all_ids("0 0 1000\n1000 1000 4294966295\n"));
    }

    #[test]
    fn a_cgroup_may_be_omitted_by_the_flag_or_by_the_caller() {
        let omits = |caller: Caller| ["auto", "", "true", "0"].map(|flag| caller.may_omit_cgroup(flag).unwrap());
        assert_eq!(omits(Caller::Root), [false, false, true, false]);
        assert_eq!(omits(Caller::NamespaceRoot), [true, true, true, false]);
        assert_eq!(omits(Caller::User), [true, true, true, false]);
        assert!(Caller::Root.may_omit_cgroup("maybe").is_err());
    }

    #[test]
    fn the_runtime_directory_is_not_used_by_the_hosts_root() {
        assert!(!Caller::Root.has_runtime_dir(None));
        assert!(Caller::User.has_runtime_dir(Some("root".into())));
        assert!(
            Caller::NamespaceRoot.has_runtime_dir(Some("ann".into())) && Caller::NamespaceRoot.has_runtime_dir(None)
        );
        assert!(!Caller::NamespaceRoot.has_runtime_dir(Some("root".into())));
    }

    #[test]
    fn a_denied_kvm_device_is_reported_with_its_group() {
        assert!(hint(0).ends_with("have root give the device to a group of yours"));
        assert!(hint(4_000_000_000).ends_with("the members of group 4000000000 may"));
    }
}
