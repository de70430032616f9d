//! The open files of a machine. The VMM opens none itself.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};
use nix::sys::stat::Mode;
use thiserror::Error;
use vmm::machine::kvm::{KvmError, open_device};

use crate::base::config::Config;
use crate::sandbox::control_socket::CONTROL_SOCKET;
use crate::sandbox::helper::HelperConnections;

/// The reason why a machine has not all its files.
#[derive(Debug, Error)]
pub(crate) enum MachineFilesError {
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error("cannot open the {kind} {}", path.display())]
    Open { kind: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot create the control socket {}", path.display())]
    Socket { path: PathBuf, source: io::Error },
}

/// The files, in the order of [`vmm::config::SandboxFiles`].
#[derive(Debug)]
pub(crate) struct MachineFiles(Vec<OwnedFd>);

impl MachineFiles {
    /// Opens the files of a machine whose container's directory is `dir`.
    ///
    /// # Errors
    /// A file cannot be opened, or the control socket exists.
    pub(crate) fn open(
        config: &Config,
        console_log: Option<&Path>,
        dir: &Path,
        helper: HelperConnections,
    ) -> Result<Self, MachineFilesError> {
        let control_socket = bind_control_socket(dir)
            .map_err(|source| MachineFilesError::Socket { path: dir.join(CONTROL_SOCKET), source })?;
        let mut files = vec![open_device()?, control_socket, helper.tasks, helper.node_maker];
        files.push(open("guest kernel", &config.kernel, File::options().read(true))?);
        files.push(open("initramfs", &config.initramfs, File::options().read(true))?);
        if let Some(path) = console_log {
            files.push(open("console log", path, File::options().append(true).create(true))?);
        }
        Ok(Self(files))
    }

    /// The descriptors to be passed.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd).collect()
    }
}

fn open(kind: &'static str, path: &Path, options: &fs::OpenOptions) -> Result<OwnedFd, MachineFilesError> {
    let opened = options.open(path).map(OwnedFd::from);
    opened.map_err(|source| MachineFilesError::Open { kind, path: path.into(), source })
}

/// Binds the control socket in `dir`, with mode 0600. The VMM listens on it, so that the host knows the VMM as its owner. The
/// directory is given by its descriptor, because its path may be too long for a socket address.
fn bind_control_socket(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let dir = nix::fcntl::open(dir, flags, Mode::empty())?;
    let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(CONTROL_SOCKET);
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(&path)?)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(socket)
}
