//! Which namespaces a container gets.

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};
use rustix::thread::ThreadNameSpaceType;

use crate::error::Error;
use crate::sys;

/// The namespaces of a container: those it has of its own. The others are the guest's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Namespaces(ThreadNameSpaceType);

impl Namespaces {
    /// Checks a specification's list.
    pub(crate) fn new(list: &[LinuxNamespace]) -> Result<Self, Error> {
        let mut own = ThreadNameSpaceType::empty();
        for namespace in list {
            let kind = kind(namespace)?;
            if own.contains(kind) {
                return Err(invalid(namespace, "is given twice"));
            }
            own |= kind;
        }
        if !own.contains(ThreadNameSpaceType::MOUNT) {
            return Err(Error::invalid(
                "linux.namespaces",
                "a container without its own mount namespace is not supported",
            ));
        }
        if own.contains(ThreadNameSpaceType::USER) {
            // Without one of its own, the kernel would mount it no cgroups at all. runc shows it the host's then.
            own |= ThreadNameSpaceType::CONTROL_GROUP;
        }
        Ok(Self(own))
    }

    /// Whether the container has its own namespaces of this kind.
    pub(crate) fn has(self, kind: ThreadNameSpaceType) -> bool {
        self.0.contains(kind)
    }

    /// What `clone3` is told. A cgroup namespace made by it would begin at the parent's cgroup, so that one is made by
    /// [`Namespaces::finish`]; the clocks of a time namespace made by it could not be set any more.
    pub(crate) fn clone_flags(self) -> u64 {
        u64::from((self.0 - ThreadNameSpaceType::CONTROL_GROUP - ThreadNameSpaceType::TIME).bits())
    }

    /// What a process that already is in the pid namespace has to join.
    pub(crate) fn join_flags(self) -> ThreadNameSpaceType {
        self.0 - ThreadNameSpaceType::PROCESS_ID
    }

    /// In the new process: makes what `clone3` could not, and brings the loopback interface up.
    pub(crate) fn finish(self) -> Result<(), Error> {
        if self.has(ThreadNameSpaceType::CONTROL_GROUP) {
            // SAFETY: a cgroup namespace changes only how paths of cgroups are shown; no memory or descriptor is touched.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWCGROUP) }
                .map_err(Error::at("make a cgroup namespace"))?;
        }
        if self.has(ThreadNameSpaceType::NETWORK) {
            sys::interface_up(b"lo").map_err(Error::at("bring up network interface lo"))?;
        }
        Ok(())
    }
}

fn kind(namespace: &LinuxNamespace) -> Result<ThreadNameSpaceType, Error> {
    if namespace.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty()) {
        return Err(invalid(namespace, "joining an existing namespace by its path is not supported"));
    }
    match namespace.typ() {
        LinuxNamespaceType::Mount => Ok(ThreadNameSpaceType::MOUNT),
        LinuxNamespaceType::Cgroup => Ok(ThreadNameSpaceType::CONTROL_GROUP),
        LinuxNamespaceType::Uts => Ok(ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME),
        LinuxNamespaceType::Ipc => Ok(ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
        LinuxNamespaceType::Pid => Ok(ThreadNameSpaceType::PROCESS_ID),
        LinuxNamespaceType::Network => Ok(ThreadNameSpaceType::NETWORK),
        LinuxNamespaceType::Time => Ok(ThreadNameSpaceType::TIME),
        LinuxNamespaceType::User => Ok(ThreadNameSpaceType::USER),
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

    #[test]
    fn the_default_list_is_accepted_and_the_cgroup_namespace_comes_later() {
        let namespaces = Namespaces::new(&get_default_namespaces()).unwrap();
        assert!(namespaces.has(ThreadNameSpaceType::CONTROL_GROUP));
        assert_eq!(namespaces.clone_flags() & u64::from(ThreadNameSpaceType::CONTROL_GROUP.bits()), 0);
        assert!(namespaces.join_flags().contains(ThreadNameSpaceType::CONTROL_GROUP));
        assert!(!namespaces.join_flags().contains(ThreadNameSpaceType::PROCESS_ID));
    }

    #[test]
    fn a_user_namespace_brings_a_cgroup_namespace() {
        let kinds = [LinuxNamespaceType::Mount, LinuxNamespaceType::User];
        let with = Namespaces::new(&kinds.map(namespace)).unwrap();
        assert!(with.has(ThreadNameSpaceType::CONTROL_GROUP));
        assert!(!Namespaces::new(&[namespace(kinds[0])]).unwrap().has(ThreadNameSpaceType::CONTROL_GROUP));
    }

    #[test]
    fn what_cannot_be_given_is_refused_by_name() {
        let mount = namespace(LinuxNamespaceType::Mount);
        assert!(Namespaces::new(&[]).unwrap_err().to_string().contains("mount namespace"));
        assert!(Namespaces::new(&[mount.clone(), mount.clone()]).unwrap_err().to_string().contains("twice"));
        let typ = LinuxNamespaceType::Network;
        let joined = LinuxNamespaceBuilder::default().typ(typ).path("/proc/1/ns/net").build().unwrap();
        assert!(Namespaces::new(&[mount, joined]).unwrap_err().to_string().contains("path"));
    }
}
