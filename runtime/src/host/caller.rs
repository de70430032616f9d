//! Who calls vmrt: the host's root, or somebody with less.

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

/// What a namespace says that has all ids as they are, which only the first one has.
const ALL_IDS: [&str; 3] = ["0", "0", "4294967295"];

/// What ids show as that a user namespace does not have.
const OVERFLOW_ID: u32 = 65_534;

/// Why vmrt does not do for its caller what it would for root.
#[derive(Debug, Error)]
pub(crate) enum CallerError {
    #[error("invalid boolean value \"{0}\" for --rootless: it is true, false or auto")]
    Flag(String),
    #[error("the path in $XDG_RUNTIME_DIR must be writable by the user: prepare {}", path.display())]
    RuntimeDir { path: PathBuf, source: io::Error },
    #[error("--systemd-cgroup is refused: only the host's root is served by systemd's manager of the machine")]
    Systemd,
    #[error("open {KVM_DEVICE}: {hint}")]
    Kvm { hint: String, source: io::Error },
}

/// Who runs vmrt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Caller {
    /// The host's root.
    Root,
    /// The root of a user namespace.
    NamespaceRoot,
    /// Anybody else.
    User,
}

impl Caller {
    /// Who runs this process.
    pub(crate) fn find() -> Self {
        match geteuid().is_root() {
            false => Self::User,
            // A kernel without user namespaces has no such file.
            true if fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !has_all_ids(&map)) => Self::NamespaceRoot,
            true => Self::Root,
        }
    }

    /// Whether a container may do without a cgroup that the caller may not make, by `--rootless` or, for `auto`, by the caller.
    pub(crate) fn may_omit_cgroup(self, flag: &str) -> Result<bool, CallerError> {
        match flag {
            "" | "auto" => Ok(self != Self::Root),
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
            _ => Err(CallerError::Flag(flag.into())),
        }
    }

    /// The directory of the containers' state, made where it is in the user's own: its sticky bit keeps it from being tidied up.
    pub(crate) fn default_root(self) -> Result<PathBuf, CallerError> {
        let dir =
            env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty() && self.has_runtime_dir(env::var_os("USER")));
        let Some(dir) = dir else { return Ok(DEFAULT_ROOT.into()) };
        let path = Path::new(&dir).join("vmrt");
        let sticky = Permissions::from_mode(0o1700);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        match made.and_then(|()| fs::set_permissions(&path, sticky)) {
            Ok(()) => Ok(path),
            Err(source) => Err(CallerError::RuntimeDir { path, source }),
        }
    }

    /// Whether `$XDG_RUNTIME_DIR` is meant: a namespace's root that calls itself root has the environment of the host's.
    fn has_runtime_dir(self, name: Option<OsString>) -> bool {
        match self {
            Self::Root => false,
            Self::NamespaceRoot => name.is_none_or(|name| name != "root"),
            Self::User => true,
        }
    }

    /// Checks that the caller may run machines. Root's VMM finds out by itself.
    pub(crate) fn check_kvm(self) -> Result<(), CallerError> {
        if self == Self::Root {
            return Ok(());
        }
        match File::options().read(true).write(true).open(KVM_DEVICE) {
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                let group = fs::metadata(KVM_DEVICE).map(|device| device.gid()).unwrap_or(OVERFLOW_ID);
                Err(CallerError::Kvm { hint: hint(group), source })
            }
            // What else is wrong the VMM tells better.
            _ => Ok(()),
        }
    }
}

fn has_all_ids(map: &str) -> bool {
    map.split_whitespace().eq(ALL_IDS)
}

/// Which group would help.
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
    fn the_first_user_namespace_has_all_ids() {
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
    fn the_users_own_directory_is_for_who_is_not_root() {
        assert!(!Caller::Root.has_runtime_dir(None));
        assert!(Caller::User.has_runtime_dir(Some("root".into())));
        assert!(
            Caller::NamespaceRoot.has_runtime_dir(Some("ann".into())) && Caller::NamespaceRoot.has_runtime_dir(None)
        );
        assert!(!Caller::NamespaceRoot.has_runtime_dir(Some("root".into())));
    }

    #[test]
    fn who_may_run_machines_is_told() {
        assert!(hint(0).ends_with("have root give the device to a group of yours"));
        assert!(hint(4_000_000_000).ends_with("the members of group 4000000000 may"));
    }
}
