//! The control socket of a sandbox.

use std::os::fd::AsRawFd;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use vmm::control::{Client, ClientError};

use crate::host::process::HostProcess;

/// Name of the control socket in a container's directory.
pub(crate) const CONTROL_SOCKET: &str = "control.sock";

/// Size of the path in a socket address, in bytes, including the final NUL: unix(7).
const SOCKET_PATH_MAX: usize = 108;

/// Connects to the sandbox of the container whose directory is `dir`.
pub(crate) fn control(dir: &Path) -> Result<Client, ClientError> {
    let path = dir.join(CONTROL_SOCKET);
    if path.as_os_str().len() < SOCKET_PATH_MAX {
        return Client::connect(&path);
    }
    // The path is too long for a socket address, so the directory is given by its descriptor.
    let failed = |source: nix::Error| ClientError::Connect { path, source: source.into() };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let dir = nix::fcntl::open(dir, flags, nix::sys::stat::Mode::empty()).map_err(failed)?;
    Client::connect(&Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(CONTROL_SOCKET))
}

/// Returns the process that listens on the control socket in `dir`; `None` if nothing listens, or if the socket is a link to that of a
/// shared sandbox.
pub(crate) fn listener(dir: &Path) -> Option<HostProcess> {
    if dir.join(CONTROL_SOCKET).is_symlink() {
        return None;
    }
    peer(&control(dir).ok()?)
}

/// Returns the process that listens on the control socket to which `client` is connected.
pub(crate) fn peer(client: &Client) -> Option<HostProcess> {
    let peer = getsockopt(client, PeerCredentials).ok()?;
    HostProcess::of(peer.pid()).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_control_socket_with_a_long_path_is_reached() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("x".repeat(150));
        fs::create_dir(&dir).unwrap();
        let here = fs::File::open(&dir).unwrap();
        let short = format!("/proc/self/fd/{}/{CONTROL_SOCKET}", here.as_raw_fd());
        let _listener = std::os::unix::net::UnixListener::bind(short).unwrap();
        assert_eq!(listener(&dir).unwrap().pid, i32::try_from(std::process::id()).unwrap());
        assert!(listener(root.path()).is_none());
    }
}
