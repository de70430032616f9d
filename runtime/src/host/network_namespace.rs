//! The network namespace of a sandbox. The VMM runs in it, so that an engine's hook finds it as `/proc/PID/ns/net` of the
//! container's pid.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime::Spec;
use thiserror::Error;

use crate::spec::namespaces;

/// `NS_GET_NSTYPE` of the kernel's `linux/nsfs.h`.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// The reason why a network namespace cannot be joined.
#[derive(Debug, Error)]
pub(crate) enum NetworkNamespaceError {
    #[error("open network namespace {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{} is no network namespace", .0.display())]
    OtherKind(PathBuf),
    #[error(
        "the host's network is refused ({} is the network namespace vmrt runs in): \
        a container in its own virtual machine cannot share it", .0.display()
    )]
    Host(PathBuf),
}

/// The network namespace that a VMM is started in.
#[derive(Debug)]
pub(crate) enum NetworkNamespace {
    /// A namespace that is created for the VMM.
    New,
    /// A namespace that exists before the VMM.
    Existing(File),
}

impl NetworkNamespace {
    /// Returns the network namespace that `spec` asks for.
    ///
    /// # Errors
    /// Its path cannot be opened, is not a network namespace, or is the network namespace of this process.
    pub(crate) fn of(spec: &Spec) -> Result<Self, NetworkNamespaceError> {
        namespaces::network_path(spec).map_or(Ok(Self::New), open)
    }

    /// Returns the namespace file if the namespace exists already.
    pub(crate) fn existing(&self) -> Option<&File> {
        match self {
            Self::New => None,
            Self::Existing(namespace) => Some(namespace),
        }
    }

    /// Runs `work` while this process, which has one thread, is in the namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the own one not again.
    pub(crate) fn within<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let own = File::open("/proc/self/ns/net")?;
        self.enter()?;
        let result = work();
        setns(own, CloneFlags::CLONE_NEWNET)?;
        Ok(result)
    }

    fn enter(&self) -> nix::Result<()> {
        match self {
            Self::New => unshare(CloneFlags::CLONE_NEWNET),
            Self::Existing(namespace) => setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET),
        }
    }
}

fn open(path: &Path) -> Result<NetworkNamespace, NetworkNamespaceError> {
    let failed = |source| NetworkNamespaceError::Open { path: path.into(), source };
    let namespace = File::open(path).map_err(failed)?;
    // SAFETY: the request takes no argument. For a file that is not a namespace the kernel returns an error.
    let kind = Errno::result(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_NSTYPE) });
    if kind != Ok(libc::CLONE_NEWNET) {
        return Err(NetworkNamespaceError::OtherKind(path.into()));
    }
    match is_current(&namespace).map_err(failed)? {
        true => Err(NetworkNamespaceError::Host(path.into())),
        false => Ok(NetworkNamespace::Existing(namespace)),
    }
}

/// Whether `namespace` is the one that this process is in. Redirecting its interfaces would disconnect the host's network.
fn is_current(namespace: &File) -> io::Result<bool> {
    let current = File::open("/proc/self/ns/net")?.metadata()?;
    let other = namespace.metadata()?;
    Ok((current.dev(), current.ino()) == (other.dev(), other.ino()))
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, SpecBuilder};

    use super::*;

    fn of(path: &str) -> Result<NetworkNamespace, String> {
        let namespace = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network).path(path).build().unwrap();
        let linux = LinuxBuilder::default().namespaces(vec![namespace]).build().unwrap();
        NetworkNamespace::of(&SpecBuilder::default().linux(linux).build().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_network_namespace_without_a_path_is_a_new_one() {
        assert!(matches!(NetworkNamespace::of(&Spec::default()), Ok(NetworkNamespace::New)));
        assert!(matches!(of(""), Ok(NetworkNamespace::New)));
    }

    #[test]
    fn a_path_to_the_host_network_or_to_another_kind_of_file_is_refused() {
        assert_eq!(of("/nonexistent").unwrap_err(), "open network namespace /nonexistent");
        assert_eq!(of("/dev/null").unwrap_err(), "/dev/null is no network namespace");
        assert_eq!(of("/proc/self/ns/mnt").unwrap_err(), "/proc/self/ns/mnt is no network namespace");
        assert!(of("/proc/self/ns/net").unwrap_err().starts_with("the host's network is refused"));
    }
}
