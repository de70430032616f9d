//! The VMM process of a sandbox. Of the command that starts it, it gets nothing but one end of a socket.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::libc;
use thiserror::Error;

use crate::host::network_namespace::NetworkNamespace;
use crate::host::open_fds::close_all_on_exec;
use crate::host::process::HostProcess;
use crate::host::user_namespace::UserNamespace;

/// Name of the VMM's log in its working directory, which is the container's directory.
pub(crate) const LOG_FILE: &str = "vmm.log";

/// Name of the file there that gets the VMM's exit status, which is its container's.
const EXIT_FILE: &str = "exit";

/// How long a killed VMM may take to be gone.
pub(crate) const END_PATIENCE: Duration = Duration::from_secs(10);

/// Exit status of a process that `SIGKILL` has ended.
pub(crate) const KILLED: u8 = 137;

/// Why a VMM could not be started, or is gone.
#[derive(Debug, Error)]
pub(crate) enum VmmError {
    #[error("make a socket pair")]
    Socket(#[source] io::Error),
    #[error("start {}", path.display())]
    Spawn { path: PathBuf, source: io::Error },
    #[error("start {} in a user namespace of its own, which the host has to let users make", path.display())]
    SpawnRootless { path: PathBuf, source: io::Error },
    #[error("examine the VMM process {pid}")]
    Examine { pid: u32, source: io::Error },
    #[error("vmrt-vmm ended unexpectedly, {0}")]
    Ended(Ending),
    #[error("vmrt-vmm process {0} does not end")]
    Immortal(i32),
}

impl VmmError {
    /// The exit status of a command that fails with it, where that does not depend on the command.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Ended(ending) if ending.was_killed() => Some(KILLED),
            _ => None,
        }
    }
}

/// How a VMM ended, and the last error in its log.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) status: Option<ExitStatus>,
    pub(crate) last_error: Option<String>,
}

impl Ending {
    /// Whether a signal ended it, or nobody could see what did.
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

/// A VMM that was just started and is not configured yet.
#[derive(Debug)]
pub(crate) struct Vmm {
    pub(crate) child: Child,
    pub(crate) process: HostProcess,
    pub(crate) control: UnixStream,
}

/// Where a VMM is.
#[derive(Debug)]
pub(crate) struct Place {
    /// The user namespace it is root in, if its caller is not root.
    pub(crate) user: Option<UserNamespace>,
    pub(crate) network: NetworkNamespace,
}

impl Place {
    /// Takes the calling process there. Makes system calls only, so it can be called between `fork` and `execve`.
    fn enter(&self) -> nix::Result<()> {
        self.user.as_ref().map_or(Ok(()), UserNamespace::enter)?;
        self.network.enter()
    }
}

/// Starts the VMM at `program` in a new session and in the namespaces of `place`, with `dir` as its working directory.
///
/// `terminal` becomes its controlling terminal, so that it is told of changes of size.
pub(crate) fn spawn(
    program: &Path,
    dir: &Path,
    debug: bool,
    terminal: Option<BorrowedFd>,
    place: Place,
) -> Result<Vmm, VmmError> {
    let (control, theirs) = UnixStream::pair().map_err(VmmError::Socket)?;
    let control_fd = theirs.as_raw_fd();
    let terminal = terminal.map(|fd| fd.as_raw_fd());
    let rootless = place.user.is_some();
    let mut command = Command::new(program);
    command.args(["--control-fd", &control_fd.to_string(), "--log", LOG_FILE, "--exit-file", EXIT_FILE]);
    command.current_dir(dir);
    command.args(debug.then_some("--debug"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: the closure makes system calls only, and touches no memory another thread could have left locked.
    unsafe { command.pre_exec(move || become_vmm(control_fd, terminal, &place)) };
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
fn become_vmm(control: RawFd, terminal: Option<RawFd>, place: &Place) -> io::Result<()> {
    nix::unistd::setsid()?;
    place.enter()?;
    if let Some(terminal) = terminal {
        // SAFETY: takes no pointer; the descriptor is open in this process.
        nix::errno::Errno::result(unsafe { libc::ioctl(terminal, libc::TIOCSCTTY, 0) })?;
    }
    // Everything but the standard streams and the control connection ends at `execve`. Not closed at once, because the
    // standard library tells a failure of `execve` over a descriptor of its own.
    close_all_on_exec()?;
    // SAFETY: takes no pointer; the descriptor is open in this process.
    nix::errno::Errno::result(unsafe { libc::fcntl(control, libc::F_SETFD, 0) })?;
    Ok(())
}

impl Vmm {
    /// Why the VMM went away: how its process ended, and the last line of its log.
    pub(crate) fn ending(&mut self, dir: &Path, patience: Duration) -> Ending {
        Ending { status: self.wait(patience), last_error: last_error(dir) }
    }

    /// Its status once it has ended; it is killed if that takes too long.
    pub(crate) fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let running = self.process.open();
        if running.is_some_and(|process| !process.wait(patience)) {
            self.child.kill().ok()?;
        }
        self.child.wait().ok()
    }
}

/// The exit status of a VMM that has ended, unless it was killed.
pub(crate) fn exit_status(dir: &Path) -> Option<u8> {
    fs::read_to_string(dir.join(EXIT_FILE)).ok()?.parse().ok()
}

/// Kills a VMM and waits until it is gone.
pub(crate) fn kill(vmm: HostProcess) -> Result<(), VmmError> {
    if vmm.kill_and_wait(END_PATIENCE) { Ok(()) } else { Err(VmmError::Immortal(vmm.pid)) }
}

/// The last error in a VMM's log, without its time.
pub(crate) fn last_error(dir: &Path) -> Option<String> {
    let text = fs::read(dir.join(LOG_FILE)).ok()?;
    let text = String::from_utf8_lossy(&text);
    let error = text.lines().rev().find_map(|line| line.split_once("ERROR "))?;
    Some(error.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NEW: Place = Place { user: None, network: NetworkNamespace::New };

    fn script(dir: &Path, text: &str) -> PathBuf {
        let path = dir.join("vmm");
        // dash redirects to descriptors of one digit only, and other tests have some open.
        fs::write(&path, format!("#!/bin/bash\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_vmm_has_its_socket_and_nothing_else_of_ours() {
        let dir = tempfile::tempdir().unwrap();
        let leak = fs::File::open("/dev/zero").unwrap();
        // Without CLOEXEC, as a descriptor inherited from a careless caller is.
        let leak = nix::unistd::dup(&leak).unwrap();
        let program = script(dir.path(), "exec >&$2; ls -l /proc/$$/fd; ps -o sid= -p $$; echo pid $$; pwd");
        let mut vmm = spawn(&program, dir.path(), false, None, NEW).unwrap();
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
    fn a_vmm_that_cannot_be_started_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = spawn(Path::new("/nonexistent"), dir.path(), false, None, NEW).unwrap_err();
        assert_eq!(error.to_string(), "start /nonexistent");
    }

    #[test]
    fn an_ending_tells_the_status_and_the_last_error() {
        let dir = tempfile::tempdir().unwrap();
        let program =
            script(dir.path(), "echo 'then ERROR no memory' >vmm.log; echo 'then  INFO bye' >>vmm.log; exit 3");
        let mut vmm = spawn(&program, dir.path(), true, None, NEW).unwrap();
        let ending = vmm.ending(dir.path(), Duration::from_secs(20));
        assert_eq!(ending.to_string(), "exit status: 3: no memory");
    }

    #[test]
    fn a_status_is_read_where_the_vmm_left_one() {
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
        let mut vmm = spawn(&program, dir.path(), false, None, NEW).unwrap();
        let ending = vmm.ending(dir.path(), Duration::from_millis(50));
        assert!(ending.to_string().starts_with("signal: 9"), "{ending}");
    }
}
