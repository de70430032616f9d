//! The user namespace of a VMM.
//!
//! A VMM whose caller is root keeps all ids of its caller, with the same numbers. It has capabilities over files of these ids, and
//! over nothing else of the host.
//!
//! Without root, vmrt creates a user namespace for the VMM and maps the caller to its root, as runc does for a container. The VMM
//! has the permissions of that root on files, and a network namespace of its own. The host applies `linux.uidMappings` and
//! `linux.gidMappings`, and the guest maps each id to itself. A caller that is already root of a user namespace needs none of this.

use std::error::Error as StdError;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::exit;

use nix::sched::{CloneFlags, setns};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, getegid, geteuid};
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Spec};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::base::error_chain::chain;
use crate::host::caller::Caller;
use crate::host::process::HostProcess;
use crate::spec::namespaces::{has_namespace, network_path};

/// The reason why a VMM has no user namespace. Where runc has a message for it, it is runc's.
#[derive(Debug, Error)]
pub(crate) enum RootlessError {
    #[error("rootless container requires user namespaces")]
    NoUserNamespace,
    #[error("rootless containers requires at least one {0} mapping")]
    NoMapping(&'static str),
    #[error(
        "linux.{field}: a user can only map their own id, to the container's root (containerID 0, hostID {own}, size 1); for more \
        ids run vmrt as the root of a user namespace that has them"
    )]
    Mapping { field: &'static str, own: u32 },
    #[error("cannot specify {0}= mount options for unmapped {0} in rootless containers")]
    MountId(&'static str),
    #[error("network namespace {} is refused: only root may join one that is there already", .0.display())]
    JoinsNetwork(PathBuf),
    #[error("run a helper process in the VMM's namespaces: {step}")]
    Helper { step: &'static str, source: io::Error },
    #[error("{0}")]
    InNamespace(String),
}

/// The first of the ids for sandboxes of the host's root. systemd's list of ids gives no purpose to those from here to 2^31.
const FIRST_SANDBOX_ID: u32 = 0x7000_0000;

/// The id maps of the user namespace of a VMM.
#[derive(Debug)]
pub(crate) struct IdMaps {
    uid_map: String,
    gid_map: String,
    /// Whether the caller is a user whose only id is the namespace's root. Otherwise the VMM has all ids of its caller, and the same
    /// numbers.
    pub(crate) belong_to_user: bool,
}

impl IdMaps {
    /// Returns the maps for a VMM that runs `spec`.
    ///
    /// # Errors
    /// The caller is not root, and `spec` has no user namespace, or it needs more than the caller's own id or an existing network
    /// namespace.
    pub(crate) fn of(spec: &Spec, caller: Caller) -> Result<Self, RootlessError> {
        if caller != Caller::User {
            return Self::for_caller(caller);
        }
        let linux = spec.linux().as_ref();
        if !has_namespace(spec, LinuxNamespaceType::User) {
            return Err(RootlessError::NoUserNamespace);
        }
        if let Some(path) = network_path(spec) {
            return Err(RootlessError::JoinsNetwork(path.into()));
        }
        check_mounts(spec)?;
        let list = |list: fn(&Linux) -> &Option<Vec<LinuxIdMapping>>| linux.and_then(|linux| list(linux).as_deref());
        let uid_map = single_id_map(("uidMappings", "UID"), list(Linux::uid_mappings), geteuid().as_raw())?;
        let gid_map = single_id_map(("gidMappings", "GID"), list(Linux::gid_mappings), getegid().as_raw())?;
        Ok(Self { uid_map, gid_map, belong_to_user: true })
    }

    /// Returns the maps for a VMM that runs no container.
    ///
    /// # Errors
    /// The id maps of this process cannot be read.
    pub(crate) fn for_caller(caller: Caller) -> Result<Self, RootlessError> {
        if caller == Caller::User {
            let map = |id| format!("0 {id} 1");
            let (uid_map, gid_map) = (map(geteuid().as_raw()), map(getegid().as_raw()));
            return Ok(Self { uid_map, gid_map, belong_to_user: true });
        }
        let read = |file| fs::read_to_string(file).map(|map| identity(&map));
        let failed = |source| RootlessError::Helper { step: "read the id maps of this process", source };
        let uid_map = read("/proc/self/uid_map").map_err(failed)?;
        let gid_map = read("/proc/self/gid_map").map_err(failed)?;
        Ok(Self { uid_map, gid_map, belong_to_user: false })
    }

    /// Writes the maps of the user namespace of process `pid`, whose parent this process is.
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn write(&self, pid: Pid) -> io::Result<()> {
        if self.belong_to_user {
            // Without privileges, a gid map may be written only once setgroups(2) is denied: user_namespaces(7).
            fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
        }
        fs::write(format!("/proc/{pid}/uid_map"), &self.uid_map)?;
        fs::write(format!("/proc/{pid}/gid_map"), &self.gid_map)
    }

    /// An id for the sandbox whose VMM is process `pid`, which no other running sandbox has. `None` if no id but root's is mapped.
    pub(crate) fn sandbox_id(&self, pid: i32) -> Option<u32> {
        let pid = pid.unsigned_abs();
        let (first, count) = extents(&self.uid_map).max_by_key(|(_, count)| *count)?;
        if self.belong_to_user || count < 3 {
            return None;
        }
        match FIRST_SANDBOX_ID.checked_sub(first) {
            Some(offset) if count > offset && count - offset > pid => Some(FIRST_SANDBOX_ID + pid),
            // The upper half of a user's range, which containers use least.
            _ => Some(first + count / 2 + pid % (count / 2)),
        }
    }
}

/// The extents of an id map inside the namespace: first id and count.
fn extents(map: &str) -> impl Iterator<Item = (u32, u32)> {
    map.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        Some((fields.next()?.parse().ok()?, fields.nth(1)?.parse().ok()?))
    })
}

/// The map that gives each id of `map` the same number in a further namespace.
fn identity(map: &str) -> String {
    extents(map).map(|(first, count)| format!("{first} {first} {count}\n")).collect()
}

/// Runs `work` in a child process that is root of the user namespace of `vmm`, and returns its result.
///
/// # Errors
/// The child failed, or `work` did. The error of `work` is reduced to its text.
pub(crate) fn run_as_root_of<T: DeserializeOwned + Serialize, E: StdError>(
    vmm: HostProcess,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, RootlessError> {
    let failed = |step| move |source| RootlessError::Helper { step, source };
    let (mut reader, writer) = io::pipe().map_err(failed("create a pipe"))?;
    // SAFETY: this process has one thread, so the child may run any code.
    let child = match unsafe { fork() }.map_err(|error| failed("fork")(error.into()))? {
        ForkResult::Child => {
            let entered = become_root_of(vmm).map_err(|error| chain(&error));
            let done = entered.and_then(|()| work().map_err(|error| chain(&error)));
            // If the result cannot be written, the parent fails to parse it.
            exit(serde_json::to_writer(writer, &done).is_err().into())
        }
        ForkResult::Parent { child } => child,
    };
    drop(writer);
    let mut text = Vec::new();
    let read = reader.read_to_end(&mut text).and_then(|_| Ok(waitpid(child, None)?));
    read.map_err(failed("wait for the process"))?;
    let done: Result<T, String> =
        serde_json::from_slice(&text).map_err(|error| failed("parse its result")(error.into()))?;
    done.map_err(RootlessError::InNamespace)
}

fn become_root_of(vmm: HostProcess) -> Result<(), RootlessError> {
    let failed = |source| RootlessError::Helper { step: "enter the VMM's user namespace", source };
    let namespace = File::open(format!("/proc/{}/ns/user", vmm.pid)).map_err(failed)?;
    setns(namespace, CloneFlags::CLONE_NEWUSER).map_err(|error| failed(error.into()))
}

/// Checks that mounts name no id but root's.
fn check_mounts(spec: &Spec) -> Result<(), RootlessError> {
    let mounts = spec.mounts().iter().flatten();
    for option in mounts.flat_map(|mount| mount.options().iter().flatten()) {
        for kind in ["uid", "gid"] {
            let id = option.strip_prefix(kind).and_then(|rest| rest.strip_prefix('='));
            if id.is_some_and(|id| id != "0") {
                return Err(RootlessError::MountId(kind));
            }
        }
    }
    Ok(())
}

/// Returns the map of the caller's id to root: the kernel lets an unprivileged process map no other id.
fn single_id_map(
    (field, kind): (&'static str, &'static str),
    list: Option<&[LinuxIdMapping]>,
    own: u32,
) -> Result<String, RootlessError> {
    match list.unwrap_or_default() {
        [] => Err(RootlessError::NoMapping(kind)),
        [map] if (map.container_id(), map.host_id(), map.size()) == (0, own, 1) => Ok(format!("0 {own} 1")),
        _ => Err(RootlessError::Mapping { field, own }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(namespaces: &[&str], map: &Value) -> Spec {
        let namespaces: Vec<_> = namespaces.iter().map(|kind| json!({"type": kind})).collect();
        let linux = json!({"namespaces": namespaces, "uidMappings": map, "gidMappings": map});
        serde_json::from_value(json!({"ociVersion": "1.0.2", "linux": linux})).unwrap()
    }

    fn refusal(spec: &Spec) -> String {
        IdMaps::of(spec, Caller::User).unwrap_err().to_string()
    }

    #[test]
    fn a_caller_without_root_may_map_only_its_own_id() {
        let own = json!([{"containerID": 0, "hostID": geteuid().as_raw(), "size": 1}]);
        let namespace = IdMaps::of(&spec(&["mount", "user"], &own), Caller::User).unwrap();
        assert_eq!(namespace.uid_map, format!("0 {} 1", geteuid()));
        assert_eq!(namespace.gid_map, format!("0 {} 1", getegid()));
        assert_eq!(refusal(&spec(&["mount"], &own)), "rootless container requires user namespaces");
        assert!(refusal(&spec(&["user"], &json!([]))).ends_with("at least one UID mapping"));
        let more = json!([{"containerID": 0, "hostID": geteuid().as_raw(), "size": 2}]);
        assert!(refusal(&spec(&["user"], &more)).starts_with("linux.uidMappings: a user can only map their own id"));
        let named = json!({"linux": {"namespaces": [{"type": "user"}, {"type": "network", "path": "/n"}]}});
        assert!(refusal(&serde_json::from_value(named).unwrap()).starts_with("network namespace /n is refused"));
        let terminals = json!({"linux": {"namespaces": [{"type": "user"}]}, "mounts": [
            {"destination": "/dev/pts", "options": ["mode=0620", "gid=5"]}]});
        let words = "cannot specify gid= mount options for unmapped gid in rootless containers";
        assert_eq!(refusal(&serde_json::from_value(terminals).unwrap()), words);
        for root in [Caller::Root, Caller::NamespaceRoot] {
            assert!(!IdMaps::of(&spec(&["mount"], &json!([])), root).unwrap().belong_to_user);
        }
    }

    #[test]
    fn a_sandbox_has_an_id_of_its_own() {
        let maps = |map: &str, belong_to_user| IdMaps { uid_map: map.into(), gid_map: map.into(), belong_to_user };
        assert_eq!(identity("         0       1000          1\n 1 100000 65536\n"), "0 0 1\n1 1 65536\n");
        assert_eq!(maps("0 0 4294967295\n", false).sandbox_id(4711), Some(0x7000_0000 + 4711));
        assert_eq!(maps("0 0 1\n1 1 65536\n", false).sandbox_id(32769), Some(1 + 32768 + 1));
        assert_eq!(maps("0 1000 1", true).sandbox_id(5), None);
        assert_eq!(maps("0 0 1\n", false).sandbox_id(5), None);
    }
}
