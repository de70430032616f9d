//! The namespaces of a container.

pub(crate) mod sysctl;
pub(crate) mod time;
pub(crate) mod user;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};
use rustix::thread::ThreadNameSpaceType;

use crate::error::Error;
use crate::sys::interface;

/// The namespaces of a container: its own, and those that it shares with other containers. Every other namespace is the
/// guest's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Namespaces {
    own: ThreadNameSpaceType,
    joined: ThreadNameSpaceType,
}

/// A namespace of another container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Join {
    pub(crate) kind: ThreadNameSpaceType,
    /// The other container's id. It is the path of the namespace in the specification that the guest gets.
    pub(crate) container: String,
}

impl Namespaces {
    /// Checks the list of a specification. Also returns the namespaces to join, in a possible order.
    pub(crate) fn new(list: &[LinuxNamespace]) -> Result<(Self, Vec<Join>), Error> {
        let mut namespaces = Self { own: ThreadNameSpaceType::empty(), joined: ThreadNameSpaceType::empty() };
        let mut joins = Vec::new();
        for namespace in list {
            let kind = kernel_kind(namespace.typ());
            if namespaces.has(kind) {
                return Err(invalid(namespace, "is given twice"));
            }
            match parse_join(namespace, kind)? {
                None => namespaces.own |= kind,
                Some(join) => {
                    namespaces.joined |= kind;
                    joins.push(join);
                }
            }
        }
        if !namespaces.owns(ThreadNameSpaceType::MOUNT) {
            return Err(Error::invalid(
                "linux.namespaces",
                "a container without its own mount namespace is not supported",
            ));
        }
        if namespaces.has(ThreadNameSpaceType::USER) && !namespaces.has(ThreadNameSpaceType::CONTROL_GROUP) {
            // Without one, the kernel would refuse the mount of a cgroup file system. runc mounts the host's then.
            namespaces.own |= ThreadNameSpaceType::CONTROL_GROUP;
        }
        // A process in another user namespace lacks the permission to join namespaces that do not belong to it.
        joins.sort_by_key(|join| join.kind == ThreadNameSpaceType::USER);
        Ok((namespaces, joins))
    }

    /// Whether the container has a namespace of this kind of its own.
    pub(crate) fn owns(self, kind: ThreadNameSpaceType) -> bool {
        self.own.contains(kind)
    }

    /// Whether the container has a namespace of this kind other than the guest's.
    pub(crate) fn has(self, kind: ThreadNameSpaceType) -> bool {
        self.own.contains(kind) || self.joined.contains(kind)
    }

    /// The flags for `clone3`. A cgroup namespace that `clone3` makes would have the parent's cgroup as its root, so
    /// [`Namespaces::finish`] makes it. The clocks of a time namespace that `clone3` makes cannot be set.
    pub(crate) fn clone_flags(self) -> u64 {
        u64::from((self.own - ThreadNameSpaceType::CONTROL_GROUP - ThreadNameSpaceType::TIME).bits())
    }

    /// The namespaces that a process which is already in the pid namespace has to join.
    pub(crate) fn join_flags(self) -> ThreadNameSpaceType {
        (self.own | self.joined) - ThreadNameSpaceType::PROCESS_ID
    }

    /// In the new process: makes the namespaces that `clone3` did not, and brings up the loopback interface.
    pub(crate) fn finish(self) -> Result<(), Error> {
        if self.own.contains(ThreadNameSpaceType::CONTROL_GROUP) {
            // SAFETY: a cgroup namespace changes only how paths of cgroups are shown; no memory or descriptor is
            // affected.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWCGROUP) }
                .map_err(Error::at("make a cgroup namespace"))?;
        }
        if self.own.contains(ThreadNameSpaceType::NETWORK) {
            interface::bring_up(b"lo").map_err(Error::at("bring up network interface lo"))?;
        }
        Ok(())
    }
}

fn parse_join(namespace: &LinuxNamespace, kind: ThreadNameSpaceType) -> Result<Option<Join>, Error> {
    let Some(path) = namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty()) else { return Ok(None) };
    match path.to_str().filter(|name| kind != ThreadNameSpaceType::MOUNT && !name.contains('/')) {
        Some(container) => Ok(Some(Join { kind, container: container.to_owned() })),
        None => Err(invalid(namespace, "joining an existing namespace by its path is not supported")),
    }
}

fn kernel_kind(kind: LinuxNamespaceType) -> ThreadNameSpaceType {
    match kind {
        LinuxNamespaceType::Mount => ThreadNameSpaceType::MOUNT,
        LinuxNamespaceType::Cgroup => ThreadNameSpaceType::CONTROL_GROUP,
        LinuxNamespaceType::Uts => ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
        LinuxNamespaceType::Ipc => ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION,
        LinuxNamespaceType::Pid => ThreadNameSpaceType::PROCESS_ID,
        LinuxNamespaceType::Network => ThreadNameSpaceType::NETWORK,
        LinuxNamespaceType::Time => ThreadNameSpaceType::TIME,
        LinuxNamespaceType::User => ThreadNameSpaceType::USER,
    }
}

fn invalid(namespace: &LinuxNamespace, reason: &str) -> Error {
    Error::invalid(format!("linux.namespaces: {}", namespace.typ()), reason)
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxNamespaceBuilder, get_default_namespaces};

    use super::*;

    fn namespace(typ: LinuxNamespaceType) -> LinuxNamespace {
        LinuxNamespaceBuilder::default().typ(typ).build().unwrap()
    }

    fn joined(typ: LinuxNamespaceType, path: &str) -> LinuxNamespace {
        LinuxNamespaceBuilder::default().typ(typ).path(path).build().unwrap()
    }

    #[test]
    fn the_default_list_is_accepted_and_clone3_makes_no_cgroup_namespace() {
        let namespaces = Namespaces::new(&get_default_namespaces()).unwrap().0;
        assert!(namespaces.has(ThreadNameSpaceType::CONTROL_GROUP));
        assert_eq!(namespaces.clone_flags() & u64::from(ThreadNameSpaceType::CONTROL_GROUP.bits()), 0);
        assert!(namespaces.join_flags().contains(ThreadNameSpaceType::CONTROL_GROUP));
        assert!(!namespaces.join_flags().contains(ThreadNameSpaceType::PROCESS_ID));
    }

    #[test]
    fn a_user_namespace_implies_a_cgroup_namespace() {
        let kinds = [LinuxNamespaceType::Mount, LinuxNamespaceType::User];
        let with = Namespaces::new(&kinds.map(namespace)).unwrap();
        assert!(with.0.has(ThreadNameSpaceType::CONTROL_GROUP));
        assert!(!Namespaces::new(&[namespace(kinds[0])]).unwrap().0.has(ThreadNameSpaceType::CONTROL_GROUP));
    }

    #[test]
    fn unsupported_namespaces_are_refused_by_name() {
        let mount = namespace(LinuxNamespaceType::Mount);
        assert!(Namespaces::new(&[]).unwrap_err().to_string().contains("mount namespace"));
        assert!(Namespaces::new(&[mount.clone(), mount.clone()]).unwrap_err().to_string().contains("twice"));
        for (typ, path) in [(LinuxNamespaceType::Network, "/proc/1/ns/net"), (LinuxNamespaceType::Mount, "web")] {
            let list = [joined(typ, path)];
            assert!(Namespaces::new(&list).unwrap_err().to_string().contains("path"), "{path}");
        }
    }

    #[test]
    fn a_user_namespace_is_joined_last() {
        let list = [
            namespace(LinuxNamespaceType::Mount),
            joined(LinuxNamespaceType::User, "web"),
            joined(LinuxNamespaceType::Network, "web"),
            joined(LinuxNamespaceType::Time, "web"),
        ];
        let (namespaces, joins) = Namespaces::new(&list).unwrap();
        assert_eq!(joins.last().unwrap().kind, ThreadNameSpaceType::USER);
        assert!(namespaces.owns(ThreadNameSpaceType::CONTROL_GROUP) && !namespaces.owns(ThreadNameSpaceType::USER));
    }

    #[test]
    fn namespaces_of_another_container_are_joined_and_not_made() {
        let list = [
            namespace(LinuxNamespaceType::Mount),
            joined(LinuxNamespaceType::Pid, "web"),
            joined(LinuxNamespaceType::Ipc, "db"),
        ];
        let (namespaces, joins) = Namespaces::new(&list).unwrap();
        assert_eq!(namespaces.clone_flags(), u64::from(ThreadNameSpaceType::MOUNT.bits()));
        assert!(namespaces.has(ThreadNameSpaceType::PROCESS_ID));
        assert_eq!(
            namespaces.join_flags(),
            ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        );
        let joins: Vec<_> = joins.iter().map(|join| (join.kind, join.container.as_str())).collect();
        let (pid, ipc) = (ThreadNameSpaceType::PROCESS_ID, ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION);
        assert_eq!(joins, [(pid, "web"), (ipc, "db")]);
    }
}
