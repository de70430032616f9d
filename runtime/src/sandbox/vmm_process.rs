//! The VMM process of a sandbox. It inherits only one end of a socket pair, the control connection, from the command that starts it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::libc;
use thiserror::Error;

use crate::base::untrusted_file;
use crate::host::network_namespace::NetworkNamespace;
use crate::host::open_fds::close_all_on_exec;
use crate::host::process::HostProcess;
use crate::host::user_namespace::UserNamespace;

/// Name of the VMM's log in the container's directory, which is the VMM's working directory.
pub(crate) const LOG_FILE: &str = "vmm.log";

/// Name of the file in the container's directory to which the VMM writes its exit status, which is that of its container.
const EXIT_FILE: &str = "exit";

/// Time limit for a VMM to end that was killed, or whose container has ended.
pub(crate) const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Exit status of a process that was killed by `SIGKILL`.
pub(crate) const KILLED: u8 = 137;

/// The failure to start a VMM, or its unexpected end.
#[derive(Debug, Error)]
pub(crate) enum VmmError {
    #[error("create a socket pair")]
    Socket(#[source] io::Error),
    #[error("start {}", path.display())]
    Spawn { path: PathBuf, source: io::Error },
    #[error("start {} in a user namespace of its own, which the host must allow users to create", path.display())]
    SpawnRootless { path: PathBuf, source: io::Error },
    #[error("examine the VMM process {pid}")]
    Examine { pid: u32, source: io::Error },
    #[error("vmrt-vmm ended unexpectedly, {0}")]
    Ended(Ending),
    #[error("vmrt-vmm process {0} does not end")]
    NotEnded(i32),
}

impl VmmError {
    /// The exit status of a command that fails with this error; `None` if it depends on the command.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Ended(ending) if ending.was_killed() => Some(KILLED),
            _ => None,
        }
    }
}

/// The end of a VMM: its exit status if that is known, and the last error in its log.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) status: Option<ExitStatus>,
    pub(crate) last_error: Option<String>,
}

impl Ending {
    /// Whether a signal ended the VMM, or its status is unknown.
    pub(crate) fn was_killed(&self) -> bool {
        self.status.is_none_or(|status| status.code().is_none())
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.status {
            Some(status) => write!(f, "{status}")?,
            None => f.write_str("killed")?,
        }
        self.last_error.iter().try_for_each(|error| write!(f, ": {error}"))
    }
}

/// A VMM that this process has started.
#[derive(Debug)]
pub(crate) struct Vmm {
    pub(crate) child: Child,
    pub(crate) process: HostProcess,
    pub(crate) control: UnixStream,
}

/// The namespaces that a VMM is started in.
#[derive(Debug)]
pub(crate) struct VmmNamespaces {
    /// The user namespace whose root the VMM is, if the caller is not root.
    pub(crate) user: Option<UserNamespace>,
    pub(crate) network: NetworkNamespace,
}

impl VmmNamespaces {
    /// Moves the calling process into the namespaces. It makes system calls only, so it may be called between `fork` and `execve`.
    fn enter(&self) -> nix::Result<()> {
        self.user.as_ref().map_or(Ok(()), UserNamespace::enter)?;
        self.network.enter()
    }
}

/// Starts the VMM at `program` in a new session and in `namespaces`, with `dir` as its working directory.
///
/// `terminal` becomes its controlling terminal, so that it gets `SIGWINCH` when the size changes.
pub(crate) fn spawn(
    program: &Path,
    dir: &Path,
    debug: bool,
    terminal: Option<BorrowedFd>,
    namespaces: VmmNamespaces,
) -> Result<Vmm, VmmError> {
    let (control, vmm_control) = UnixStream::pair().map_err(VmmError::Socket)?;
    let control_fd = vmm_control.as_raw_fd();
    let terminal = terminal.map(|fd| fd.as_raw_fd());
    let rootless = namespaces.user.is_some();
    let mut command = Command::new(program);
    command.args(["--control-fd", &control_fd.to_string(), "--log", LOG_FILE, "--exit-file", EXIT_FILE]);
    command.current_dir(dir);
    command.args(debug.then_some("--debug"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: the closure makes system calls only and takes no lock, so it is sound between `fork` and `execve`.
    unsafe { command.pre_exec(move || prepare_child(control_fd, terminal, &namespaces)) };
    let child = command.spawn().map_err(|source| match rootless {
        true => VmmError::SpawnRootless { path: program.into(), source },
        false => VmmError::Spawn { path: program.into(), source },
    })?;
    let process = identify(&child)?;
    Ok(Vmm { child, process, control })
}

fn identify(child: &Child) -> Result<HostProcess, VmmError> {
    let process = i32::try_from(child.id()).map_err(io::Error::other).and_then(HostProcess::of);
    process.map_err(|source| VmmError::Examine { pid: child.id(), source })
}

/// Runs in the child between `fork` and `execve`.
fn prepare_child(control: RawFd, terminal: Option<RawFd>, namespaces: &VmmNamespaces) -> io::Result<()> {
    nix::unistd::setsid()?;
    namespaces.enter()?;
    if let Some(terminal) = terminal {
        // SAFETY: TIOCSCTTY takes no pointer, and the descriptor is open in this process.
        nix::errno::Errno::result(unsafe { libc::ioctl(terminal, libc::TIOCSCTTY, 0) })?;
    }
    // All descriptors but the standard streams and the control connection close at `execve`. They are not closed here, because the
    // standard library reports a failure of `execve` over a descriptor of its own.
    close_all_on_exec()?;
    // SAFETY: F_SETFD takes no pointer, and the descriptor is open in this process.
    nix::errno::Errno::result(unsafe { libc::fcntl(control, libc::F_SETFD, 0) })?;
    Ok(())
}

impl Vmm {
    /// Waits for the end of the VMM, at most for `timeout`, and returns its status and the last error in its log.
    pub(crate) fn ending(&mut self, dir: &Path, timeout: Duration) -> Ending {
        Ending { status: self.wait(timeout), last_error: last_error(dir) }
    }

    /// Waits for the end of the VMM and returns its status. The VMM is killed if it does not end within `timeout`.
    pub(crate) fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let running = self.process.open();
        if running.is_some_and(|process| !process.wait(timeout)) {
            self.child.kill().ok()?;
        }
        self.child.wait().ok()
    }
}

/// Reads the exit status that a VMM wrote to the container's directory; `None` if it was killed or still runs.
pub(crate) fn exit_status(dir: &Path) -> Option<u8> {
    String::from_utf8(untrusted_file::read_start(&dir.join(EXIT_FILE), 16).ok()?).ok()?.parse().ok()
}

/// Kills a VMM and waits until it has ended.
pub(crate) fn kill(vmm: HostProcess) -> Result<(), VmmError> {
    if vmm.kill_and_wait(END_TIMEOUT) { Ok(()) } else { Err(VmmError::NotEnded(vmm.pid)) }
}

/// Returns the last error in a VMM's log, without its time.
pub(crate) fn last_error(dir: &Path) -> Option<String> {
    let text = untrusted_file::read_end(&dir.join(LOG_FILE), 64 << 10).ok()?;
    let text = String::from_utf8_lossy(&text);
    let error = text.lines().rev().find_map(|line| line.split_once("ERROR "))?;
    Some(error.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NEW_NETWORK: VmmNamespaces = VmmNamespaces { user: None, network: NetworkNamespace::New };

    fn script(dir: &Path, text: &str) -> PathBuf {
        let path = dir.join("vmm");
        // dash can redirect only to descriptors of one digit, and other tests of this process have several open.
        fs::write(&path, format!("#!/bin/bash\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_vmm_inherits_only_its_control_socket() {
        let dir = tempfile::tempdir().unwrap();
        let leak = fs::File::open("/dev/zero").unwrap();
        // The duplicate has no CLOEXEC flag, like a descriptor that vmrt inherits from its caller.
        let leak = nix::unistd::dup(&leak).unwrap();
        let program = script(dir.path(), "exec >&$2; ls -l /proc/$$/fd; ps -o sid= -p $$; echo pid $$; pwd");
        let mut vmm = spawn(&program, dir.path(), false, None, NEW_NETWORK).unwrap();
        let mut text = String::new();
        vmm.control.read_to_string(&mut text).unwrap();
        assert!(vmm.child.wait().unwrap().success());
        let (_, pid) = text.split_once("pid ").unwrap();
        let pid = pid.lines().next().unwrap();
        assert!(text.lines().any(|line| line.trim() == pid), "not the leader of a session: {text}");
        assert!(!text.contains("/dev/zero"), "{text}");
        assert!(text.ends_with(&format!("{}\n", dir.path().canonicalize().unwrap().display())));
        drop(leak);
    }

    #[test]
    fn a_failure_to_start_a_vmm_names_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let error = spawn(Path::new("/nonexistent"), dir.path(), false, None, NEW_NETWORK).unwrap_err();
        assert_eq!(error.to_string(), "start /nonexistent");
    }

    #[test]
    fn an_ending_has_the_status_and_the_last_error() {
        let dir = tempfile::tempdir().unwrap();
        let program =
            script(dir.path(), "echo 'then ERROR no memory' >vmm.log; echo 'then  INFO bye' >>vmm.log; exit 3");
        let mut vmm = spawn(&program, dir.path(), true, None, NEW_NETWORK).unwrap();
        let ending = vmm.ending(dir.path(), Duration::from_secs(20));
        assert_eq!(ending.to_string(), "exit status: 3: no memory");
    }

    #[test]
    fn the_exit_status_is_read_from_the_exit_file() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(exit_status(dir.path()), None);
        fs::write(dir.path().join(EXIT_FILE), "143").unwrap();
        assert_eq!(exit_status(dir.path()), Some(143));
        fs::write(dir.path().join(EXIT_FILE), "").unwrap();
        assert_eq!(exit_status(dir.path()), None);
    }

    #[test]
    fn a_vmm_that_does_not_end_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let program = script(dir.path(), "exec sleep 100");
        let mut vmm = spawn(&program, dir.path(), false, None, NEW_NETWORK).unwrap();
        let ending = vmm.ending(dir.path(), Duration::from_millis(50));
        assert!(ending.to_string().starts_with("signal: 9"), "{ending}");
    }
}
