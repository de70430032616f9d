//! Runs code in a network namespace.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns};

use super::error::NetworkError;
use crate::host::process::HostProcess;

/// A file that refers to a network namespace.
#[derive(Debug)]
pub(crate) struct OpenNamespace(File);

impl OpenNamespace {
    /// Opens the network namespace of a VMM.
    pub(crate) fn of_process(vmm: HostProcess) -> Result<Self, NetworkError> {
        let file = File::open(format!("/proc/{}/ns/net", vmm.pid));
        file.map(Self).map_err(|source| NetworkError::Namespace { pid: vmm.pid, source })
    }

    /// Opens the network namespace at `path`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// Duplicates an open network namespace.
    pub(crate) fn duplicate(file: &File) -> io::Result<Self> {
        file.try_clone().map(Self)
    }

    /// Runs `work` on a new thread in the namespace. The calling thread stays out of it, since returning from a namespace can fail.
    pub(super) fn run<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, NetworkError> + Send,
    ) -> Result<T, NetworkError> {
        thread::scope(|scope| {
            let thread = thread::Builder::new().spawn_scoped(scope, || {
                setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|error| NetworkError::Enter(error.into()))?;
                work()
            });
            let thread = thread.map_err(NetworkError::Thread)?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
