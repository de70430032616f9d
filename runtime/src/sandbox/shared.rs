//! Shared sandboxes. A container that joins namespaces of another container, as in a pod, is created in that container's machine.
//!
//! A path `/proc/PID/ns/KIND` names a container by its pid on the host. The new container has a process of its own on the host, its
//! proxy. `control.sock` in its directory is a link to the socket of the shared sandbox, so that commands need not distinguish it.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::ProcessId;
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Spec};
use thiserror::Error;
use vmm::control::{Client, Request};

use crate::base::container_id::ContainerId;
use crate::base::log::Log;
use crate::sandbox::connection::{Connection, RequestError};
use crate::sandbox::control_socket::{CONTROL_SOCKET, control};
use crate::sandbox::record::{Phase, Record};
use crate::sandbox::store::{StateError, Store};
use crate::sandbox::vmm_process::{END_TIMEOUT, Vmm};
use crate::spec::namespaces::{self, has_namespace};

/// Time limit for a new process to become a container's proxy.
const PROXY_TIMEOUT: Duration = Duration::from_secs(10);

/// The reason why a namespace cannot be joined.
#[derive(Debug, Error)]
pub(crate) enum JoinError {
    #[error(
        "joining the {kind} namespace {} is not supported: it is the host's, and the container's machine has its own",
        path.display()
    )]
    Foreign { kind: LinuxNamespaceType, path: PathBuf },
    #[error("joining the mount namespace of container {0} is not supported: a container has mounts of its own")]
    MountNamespace(ContainerId),
    #[error("container {0}, whose user namespace is to be joined, has none of its own")]
    NoUserNamespace(ContainerId),
    #[error(
        "user namespaces enabled, but both namespace path and non-matching mapping specified -- you may only provide one \
        (the namespace is container {0}'s)"
    )]
    MappingMismatch(ContainerId),
    #[error("container {id}, whose {kind} namespace is to be joined, is not running")]
    Stopped { kind: LinuxNamespaceType, id: ContainerId },
    #[error("the containers {0} and {1}, whose namespaces are to be joined, are in different machines")]
    DifferentSandboxes(ContainerId, ContainerId),
    #[error("find the control socket of container {id}")]
    Socket { id: ContainerId, source: io::Error },
    #[error("link {} to the control socket of another container", path.display())]
    Link { path: PathBuf, source: io::Error },
    #[error(transparent)]
    State(#[from] StateError),
}

/// The sandbox of other containers in which a new container is created.
#[derive(Debug)]
pub(crate) struct SharedSandbox {
    /// Its control socket.
    socket: PathBuf,
    /// The joined namespaces, with the container that each belongs to.
    namespaces: Vec<(LinuxNamespaceType, ContainerId)>,
}

impl SharedSandbox {
    /// Finds the sandbox of the namespaces that the specification joins; `None` if it joins none.
    ///
    /// # Errors
    /// A namespace cannot be joined, or the namespaces are in different sandboxes.
    pub(crate) fn of(spec: &Spec, store: &Store) -> Result<Option<Self>, JoinError> {
        let mut shared: Option<Self> = None;
        for (kind, path) in namespaces::existing(spec) {
            let Some((id, socket)) = find(store, kind, path)? else { continue };
            let shared = shared.get_or_insert_with(|| Self { socket: socket.clone(), namespaces: Vec::new() });
            if shared.socket != socket {
                let (_, first) = shared.namespaces.swap_remove(0);
                return Err(JoinError::DifferentSandboxes(first, id));
            }
            shared.namespaces.push((kind, id));
        }
        Ok(shared)
    }

    /// Copies the id mappings of a joined user namespace to the specification, which may contain them already.
    ///
    /// # Errors
    /// The joined container has no user namespace, or the specification has different mappings.
    pub(crate) fn set_id_mappings(&self, spec: &mut Spec, store: &Store, log: &Log) -> Result<(), JoinError> {
        let Some(id) = self.container_of(LinuxNamespaceType::User) else { return Ok(()) };
        let theirs = store.spec(id)?;
        if !has_namespace(&theirs, LinuxNamespaceType::User) {
            return Err(JoinError::NoUserNamespace(id.clone()));
        }
        let (theirs, Some(linux)) = (mappings(theirs.linux().as_ref()), spec.linux_mut().as_mut()) else {
            return Ok(());
        };
        match mappings(Some(linux)) {
            own if own == [const { Vec::new() }; 2] => {}
            own if own == theirs => log.warn("the id mappings of a joined user namespace need not be specified"),
            _ => return Err(JoinError::MappingMismatch(id.clone())),
        }
        let [uids, gids] = theirs;
        linux.set_uid_mappings(Some(uids)).set_gid_mappings(Some(gids));
        Ok(())
    }

    /// Returns the container whose namespace of this kind is joined.
    fn container_of(&self, kind: LinuxNamespaceType) -> Option<&ContainerId> {
        self.namespaces.iter().find(|(joined, _)| *joined == kind).map(|(_, id)| id)
    }

    /// Whether the new container joins a network namespace.
    pub(crate) fn has_network(&self) -> bool {
        self.container_of(LinuxNamespaceType::Network).is_some()
    }

    /// Replaces the paths of joined namespaces in the guest's specification by the ids of their containers.
    pub(crate) fn name_namespaces(&self, spec: &mut Spec) {
        let namespaces = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut());
        for namespace in namespaces.into_iter().flatten() {
            if let Some(id) = self.container_of(namespace.typ()) {
                namespace.set_path(Some(id.as_str().into()));
            }
        }
    }

    /// Links the control socket into `dir`, the container's directory.
    pub(crate) fn link(&self, dir: &Path) -> Result<(), JoinError> {
        let path = dir.join(CONTROL_SOCKET);
        // A killed `create` of the same container may have left a link.
        let _ = fs::remove_file(&path);
        symlink(&self.socket, &path).map_err(|source| JoinError::Link { path, source })
    }
}

/// Makes `vmm` the proxy of the container that was created over `connection`: it ends with the container. The proxy gets the
/// connection, and `connection` gets a new one.
pub(crate) fn become_proxy(
    vmm: &Vmm,
    connection: &mut Connection,
    id: &ContainerId,
    dir: &Path,
) -> Result<(), RequestError> {
    let mut proxy = Client::from_stream(vmm.control.try_clone().map_err(RequestError::Wait)?);
    let request = Request::BecomeProxy { container: id.to_string(), jail: vmm.jail };
    proxy.call(&request, &[connection.client.as_fd()], Some(PROXY_TIMEOUT))?;
    connection.client = control(dir)?;
    // The end of the proxy is not waited for: it may come before the shared sandbox reports the end of the container.
    connection.vmm = None;
    Ok(())
}

/// Waits until the shared sandbox has removed a container whose proxy has ended.
pub(crate) fn wait_for_removal(record: &Record, dir: &Path) {
    let Ok(mut client) = control(dir) else { return };
    let process = ProcessId { container: record.id.clone(), exec: None };
    // The answer comes when the container ends; it is a failure if the container is removed already.
    let _ = client.call(&Request::Wait { process }, &[], Some(END_TIMEOUT));
}

/// Returns the mappings of user ids and of group ids.
fn mappings(linux: Option<&Linux>) -> [Vec<LinuxIdMapping>; 2] {
    let list = |list: fn(&Linux) -> &Option<Vec<LinuxIdMapping>>| linux.and_then(|linux| list(linux).clone());
    [list(Linux::uid_mappings), list(Linux::gid_mappings)].map(Option::unwrap_or_default)
}

/// Returns the container that the namespace `path` belongs to, and the control socket of its machine.
fn find(store: &Store, kind: LinuxNamespaceType, path: &Path) -> Result<Option<(ContainerId, PathBuf)>, JoinError> {
    let record = pid_in(path).map(|pid| container_with_pid(store, pid)).transpose()?.flatten();
    let Some((id, record)) = record else {
        return match kind {
            LinuxNamespaceType::Network => Ok(None),
            _ => Err(JoinError::Foreign { kind, path: path.into() }),
        };
    };
    if kind == LinuxNamespaceType::Mount {
        return Err(JoinError::MountNamespace(id));
    }
    if !matches!(record.phase_now(), Phase::Created | Phase::Running) {
        return Err(JoinError::Stopped { kind, id });
    }
    match fs::canonicalize(store.dir(&id).join(CONTROL_SOCKET)) {
        Ok(socket) => Ok(Some((id, socket))),
        Err(source) => Err(JoinError::Socket { id, source }),
    }
}

/// Returns the pid in a path `/proc/PID/ns/KIND`.
fn pid_in(path: &Path) -> Option<i32> {
    let mut parts = path.strip_prefix("/proc").ok()?.components();
    let pid = parts.next()?.as_os_str().to_str()?.parse().ok()?;
    (parts.next()?.as_os_str() == "ns").then_some(pid)
}

/// Returns the container whose process on the host has this pid.
fn container_with_pid(store: &Store, pid: i32) -> Result<Option<(ContainerId, Box<Record>)>, JoinError> {
    for id in store.ids()? {
        match store.record(&id) {
            Ok(record) if record.vmm.pid == pid && record.is_of_this_boot() => return Ok(Some((id, record))),
            // A container that was deleted meanwhile is skipped.
            _ => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxBuilder, LinuxNamespaceBuilder, SpecBuilder};
    use serde_json::json;

    use super::*;
    use crate::host::process::{HostProcess, boot_id};

    /// Makes a store with running containers, each with a machine of its own. This process stands for their VMMs.
    fn store(ids: &[&str]) -> (tempfile::TempDir, Store) {
        let root = tempfile::tempdir().unwrap();
        let own = HostProcess::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        for id in ids {
            let record = json!({
                "id": id, "phase": "running", "vmm": own, "bootId": boot_id().unwrap(), "bundle": "/b", "rootfs": "/b",
                "created": "", "cgroup": [], "machine": {"memoryMib": 1, "vcpus": 1},
            });
            let dir = root.path().join(id);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("state.json"), record.to_string()).unwrap();
            fs::write(dir.join(CONTROL_SOCKET), "").unwrap();
        }
        let store = Store::new(root.path().to_owned());
        (root, store)
    }

    fn spec(namespaces: &[(LinuxNamespaceType, String)]) -> Spec {
        let list = namespaces
            .iter()
            .map(|(kind, path)| LinuxNamespaceBuilder::default().typ(*kind).path(path).build().unwrap());
        let linux = LinuxBuilder::default().namespaces(list.collect::<Vec<_>>()).build().unwrap();
        SpecBuilder::default().linux(linux).build().unwrap()
    }

    fn own(kind: &str) -> String {
        format!("/proc/{}/ns/{kind}", std::process::id())
    }

    #[test]
    fn the_sandbox_of_a_joined_namespace_is_found_and_linked() {
        let (root, store) = store(&["web"]);
        let mut spec = spec(&[(LinuxNamespaceType::Network, own("net")), (LinuxNamespaceType::Ipc, own("ipc"))]);
        let shared = SharedSandbox::of(&spec, &store).unwrap().unwrap();
        assert!(shared.has_network());
        shared.name_namespaces(&mut spec);
        let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
        assert!(namespaces.iter().all(|one| one.path().as_deref() == Some(Path::new("web"))), "{namespaces:?}");
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            shared.link(dir.path()).unwrap();
        }
        let socket = root.path().join("web").join(CONTROL_SOCKET).canonicalize().unwrap();
        assert_eq!(dir.path().join(CONTROL_SOCKET).canonicalize().unwrap(), socket);
    }

    #[test]
    fn a_namespace_of_no_container_is_refused_unless_it_is_a_network() {
        let (_root, store) = store(&[]);
        let of =
            |kind, path: String| SharedSandbox::of(&spec(&[(kind, path)]), &store).map_err(|error| error.to_string());
        assert!(of(LinuxNamespaceType::Network, own("net")).unwrap().is_none());
        assert!(of(LinuxNamespaceType::Pid, String::new()).unwrap().is_none());
        for path in [own("uts"), "/proc/self/ns/uts".to_owned(), "/run/uts".to_owned()] {
            assert!(of(LinuxNamespaceType::Uts, path).unwrap_err().contains("it is the host's"));
        }
    }

    #[test]
    fn a_namespace_that_cannot_be_joined_is_refused_with_its_container() {
        let (root, store) = store(&["web"]);
        let of = |kind, path: String| SharedSandbox::of(&spec(&[(kind, path)]), &store).unwrap_err().to_string();
        assert!(of(LinuxNamespaceType::Mount, own("mnt")).contains("of container web is not supported"));
        fs::remove_file(root.path().join("web").join(CONTROL_SOCKET)).unwrap();
        assert!(of(LinuxNamespaceType::Pid, own("pid")).contains("control socket of container web"));
    }
}
