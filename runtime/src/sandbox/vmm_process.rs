//! The VMM process of a sandbox. It inherits only one end of a socket pair, the control connection, from the command that starts it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nix::libc;
use thiserror::Error;
use vmm::config::JailConfig;

use crate::base::log::Log;
use crate::base::state_file;
use crate::host::network_namespace::NetworkNamespace;
use crate::host::process::HostProcess;
use crate::host::spawn::{self as host_spawn, Child, ProcessLimits, Program, Started};
use crate::host::user_namespace::IdMaps;

/// Name of the VMM's log in the container's directory.
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
    Examine { pid: i32, source: io::Error },
    #[error("open {}", path.display())]
    File { path: PathBuf, source: io::Error },
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
    /// How it confines itself.
    pub(crate) jail: JailConfig,
}

/// The namespaces that a VMM is started in.
#[derive(Debug)]
pub(crate) struct VmmNamespaces {
    pub(crate) maps: IdMaps,
    pub(crate) network: NetworkNamespace,
}

/// What a VMM is started with.
#[derive(Debug)]
pub(crate) struct VmmOptions<'a> {
    pub(crate) program: &'a Path,
    /// The container's directory, for the log and the exit status.
    pub(crate) dir: &'a Path,
    /// Becomes the controlling terminal, so that the VMM gets `SIGWINCH` when its size changes.
    pub(crate) terminal: Option<BorrowedFd<'a>>,
    pub(crate) oom_score_adj: i32,
}

/// Starts a VMM in a new session and in `namespaces`. Its standard error is the log, its standard output the file for the exit status.
///
/// # Errors
/// A step failed. No process is left.
pub(crate) fn spawn(options: &VmmOptions, namespaces: &VmmNamespaces, log: &Log) -> Result<Vmm, VmmError> {
    let VmmOptions { program, dir, terminal, oom_score_adj } = *options;
    let (control, vmm_control) = UnixStream::pair().map_err(VmmError::Socket)?;
    let null = File::open("/dev/null").map_err(|source| VmmError::File { path: "/dev/null".into(), source })?;
    let (exit_file, log_file) = (open_exit_file(dir)?, open_log(dir)?);
    let mut arguments = vec!["--control-fd".to_owned(), vmm_control.as_raw_fd().to_string()];
    arguments.extend(log.debug.then(|| "--debug".to_owned()));
    let program_setup = Program {
        path: program,
        arguments: &arguments,
        stdio: [null.as_fd(), exit_file.as_fd(), log_file.as_fd()],
        inherited: vmm_control.as_fd(),
        terminal,
    };
    let limits = ProcessLimits { oom_score_adj, open_files: open_files() };
    let started = host_spawn::spawn(&program_setup, &namespaces.network, &namespaces.maps, limits);
    let Started { mut child, own_user, own_mounts } =
        started.map_err(|source| match namespaces.maps.belong_to_user {
            true => VmmError::SpawnRootless { path: program.into(), source },
            false => VmmError::Spawn { path: program.into(), source },
        })?;
    if !own_user {
        log.warn("the VMM has no user namespace of its own, because the host does not allow one");
    }
    let pid = child.id();
    let id = namespaces.maps.sandbox_id(pid);
    match HostProcess::of(pid) {
        Ok(process) => Ok(Vmm { child, process, control, jail: JailConfig { own_mounts, id } }),
        Err(source) => {
            let _ = child.kill().and_then(|()| child.wait());
            Err(VmmError::Examine { pid, source })
        }
    }
}

/// Opens a file in the container's directory, which a former VMM of the same container may have left.
fn open_in(dir: &Path, name: &str, options: &mut OpenOptions) -> Result<File, VmmError> {
    let path = dir.join(name);
    let opened = options.create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path);
    opened.map_err(|source| VmmError::File { path, source })
}

/// Opens the VMM's log for appending.
pub(crate) fn open_log(dir: &Path) -> Result<File, VmmError> {
    open_in(dir, LOG_FILE, OpenOptions::new().append(true))
}

fn open_exit_file(dir: &Path) -> Result<File, VmmError> {
    open_in(dir, EXIT_FILE, OpenOptions::new().write(true).truncate(true))
}

/// Most descriptors that a VMM may have open: what the host allows a process, but at most 2^20, and at most a 16th of what the host has
/// for all. Each inode that the guest knows takes one.
fn open_files() -> u64 {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse().ok();
    let share = |all: u64| all / 16;
    let limits = [number("/proc/sys/fs/nr_open"), number("/proc/sys/fs/file-max").map(share)];
    limits.into_iter().flatten().fold(1 << 20, u64::min)
}

impl Vmm {
    /// Waits for the end of the VMM, at most for `timeout`, and returns its status and the last error in its log.
    pub(crate) fn ending(&mut self, dir: &Path, timeout: Duration) -> Ending {
        Ending { status: self.wait(timeout), last_error: last_error(dir) }
    }

    /// Waits for the end of the VMM and returns its status. The VMM is killed if it does not end within `timeout`.
    pub(crate) fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        if !self.process.wait(timeout) {
            self.child.kill().ok()?;
        }
        self.child.wait().ok()
    }
}

/// Reads the exit status that a VMM wrote to the container's directory; `None` if it was killed or still runs.
pub(crate) fn exit_status(dir: &Path) -> Option<u8> {
    String::from_utf8(state_file::read(&dir.join(EXIT_FILE), 16).ok()?).ok()?.parse().ok()
}

/// Why a VMM has ended without an exit status: the last error in its log. A VMM that was killed could write none.
pub(crate) fn cause_of_end(dir: &Path) -> String {
    match last_error(dir) {
        Some(error) => format!("vmrt-vmm ended unexpectedly: {error}"),
        None => "vmrt-vmm was killed".to_owned(),
    }
}

/// Kills a VMM and waits until it has ended.
pub(crate) fn kill(vmm: HostProcess) -> Result<(), VmmError> {
    if vmm.kill_and_wait(END_TIMEOUT) { Ok(()) } else { Err(VmmError::NotEnded(vmm.pid)) }
}

/// Returns the last error in the last 64 KiB of a VMM's log, without its time.
pub(crate) fn last_error(dir: &Path) -> Option<String> {
    let text = state_file::read_end(&dir.join(LOG_FILE), 64 << 10).ok()?;
    let text = String::from_utf8_lossy(&text);
    // The level is the second word. Later ones may be the guest's.
    let error = text.lines().rev().find_map(|line| line.split_once(' ')?.1.strip_prefix("ERROR "))?;
    Some(error.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    use oci_spec::runtime::Spec;

    use super::*;
    use crate::base::log::Format;
    use crate::host::caller::Caller;

    fn start(program: &Path, dir: &Path) -> Result<Vmm, VmmError> {
        let maps = IdMaps::of(&Spec::default(), Caller::Root).unwrap();
        let options = VmmOptions { program, dir, terminal: None, oom_score_adj: 17 };
        let log = Log::new(None, Format::Text, false).unwrap();
        spawn(&options, &VmmNamespaces { maps, network: NetworkNamespace::New }, &log)
    }

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
        let words = "echo 5; exec >&$2; ls -l /proc/self/fd; ps -o sid= -p $$; cat /proc/self/oom_score_adj; env; echo $$; ulimit -c";
        let program = script(dir.path(), words);
        let mut vmm = start(&program, dir.path()).unwrap();
        let mut text = String::new();
        vmm.control.read_to_string(&mut text).unwrap();
        assert!(vmm.child.wait().unwrap().success());
        assert!(!text.contains("/dev/zero"), "{text}");
        for inherited in ["vmm.log", "/dev/null"] {
            assert!(text.contains(inherited), "{text}");
        }
        assert!(text.contains("\n17\n"), "{text}");
        assert!(text.ends_with("\n1\n0\n"), "it is the first process of its namespace, without core dumps: {text}");
        assert_eq!(exit_status(dir.path()), None, "a status ends without a newline");
        assert_eq!(fs::read_to_string(dir.path().join(EXIT_FILE)).unwrap(), "5\n");
        drop(leak);
    }

    #[test]
    fn the_log_is_not_opened_through_a_symbolic_link() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join(LOG_FILE)).unwrap();
        assert!(open_log(dir.path()).is_err());
    }

    #[test]
    fn a_failure_to_start_a_vmm_names_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let error = start(Path::new("/nonexistent"), dir.path()).unwrap_err();
        assert_eq!(error.to_string(), "start /nonexistent");
    }

    #[test]
    fn an_ending_has_the_status_and_the_last_error() {
        let dir = tempfile::tempdir().unwrap();
        let program = script(dir.path(), "echo 'then ERROR no memory' >&2; echo 'then  INFO bye' >&2; exit 3");
        let mut vmm = start(&program, dir.path()).unwrap();
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
    fn the_cause_of_an_end_is_the_last_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(cause_of_end(dir.path()), "vmrt-vmm was killed");
        fs::write(dir.path().join(LOG_FILE), "then ERROR the VMM crashed\n").unwrap();
        assert_eq!(cause_of_end(dir.path()), "vmrt-vmm ended unexpectedly: the VMM crashed");
    }

    #[test]
    fn only_the_end_of_a_regular_log_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join(LOG_FILE);
        let line = format!("then  INFO {}\n", "x".repeat(1000));
        fs::write(&log, format!("then ERROR first\n{}", line.repeat(100))).unwrap();
        assert_eq!(last_error(dir.path()), None);
        let forged = "then  WARN guest: ERROR forged\n";
        fs::write(&log, format!("{}then ERROR last\n{line}{forged}", line.repeat(100))).unwrap();
        assert_eq!(last_error(dir.path()).as_deref(), Some("last"));
        fs::rename(&log, dir.path().join("other")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("other"), &log).unwrap();
        assert_eq!(last_error(dir.path()), None);
    }

    #[test]
    fn a_vmm_that_does_not_end_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let program = script(dir.path(), "exec sleep 100");
        let mut vmm = start(&program, dir.path()).unwrap();
        let ending = vmm.ending(dir.path(), Duration::from_millis(50));
        assert!(ending.to_string().starts_with("signal: 9"), "{ending}");
    }
}
