//! Starts a process in namespaces of its own.
//!
//! `clone3` makes the process and its namespaces in one step: a process cannot move itself into a pid namespace, and the first process of
//! a user namespace needs id maps that its parent writes.

use std::ffi::{CString, NulError};
use std::fs;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use nix::unistd::{Pid, dup2_raw, execve};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};

use crate::host::network_namespace::NetworkNamespace;
use crate::host::open_fds::close_all_on_exec;
use crate::host::user_namespace::IdMaps;

/// The namespaces that a process gets in any case, where the host allows it.
const OWN: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWCGROUP);

/// Exit status of a child that cannot execute its program. Nobody sees it.
const NOT_EXECUTED: i32 = 127;

/// The program of a new process and its surroundings.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    pub(crate) path: &'a Path,
    pub(crate) arguments: &'a [String],
    /// Standard input, output and error.
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    /// A further descriptor that the process inherits, under the same number.
    pub(crate) inherited: BorrowedFd<'a>,
    /// Becomes the controlling terminal, so that the process gets `SIGWINCH` when its size changes.
    pub(crate) terminal: Option<BorrowedFd<'a>>,
}

/// The settings of a new process that only its parent can make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcessLimits {
    /// The value of `oom_score_adj`.
    pub(crate) oom_score_adj: i32,
    /// Most open descriptors.
    pub(crate) open_files: u64,
}

/// A child of this process.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    status: Option<ExitStatus>,
}

/// A started process, and what it got.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) child: Child,
    /// Whether it has a user namespace of its own.
    pub(crate) own_user: bool,
    /// Whether it has a mount namespace of its own.
    pub(crate) own_mounts: bool,
}

impl Child {
    pub(crate) fn id(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Kills the process.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        if self.status.is_some() {
            return Ok(());
        }
        Ok(nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGKILL)?)
    }

    /// Waits for the end of the process.
    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        let mut status = 0;
        // SAFETY: the pointer is that of a live variable.
        let wait = || Errno::result(unsafe { libc::waitpid(self.pid.as_raw(), &raw mut status, 0) });
        retry(wait)?;
        Ok(*self.status.insert(ExitStatus::from_raw(status)))
    }
}

fn retry(mut call: impl FnMut() -> nix::Result<libc::pid_t>) -> nix::Result<libc::pid_t> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Starts `program` in a new session, in `network`, and in namespaces of its own: user (with `maps`), mount, pid, ipc, uts and cgroup.
/// A host that allows no user namespace gives root's process the others, and a host that allows none of them only the network
/// namespace. The result says what the process got.
///
/// # Errors
/// A step failed. No process is left.
pub(crate) fn spawn(
    program: &Program,
    network: &NetworkNamespace,
    maps: &IdMaps,
    limits: ProcessLimits,
) -> io::Result<Started> {
    let image = Image::of(program)?;
    let (go_reader, mut go) = io::pipe()?;
    let (mut failure, failure_writer) = io::pipe()?;
    let child = |flags| {
        clone(flags, || {
            let setup = ChildSetup { image: &image, program, go: &go_reader, parents_go: go.as_raw_fd() };
            let Err(errno) = setup.run();
            report(&failure_writer, errno);
        })
    };
    let flags = attempts(maps);
    let (pid, flags) = match maps.belong_to_user {
        // The new user namespace owns the network namespace, so both are made together.
        true => first(&flags, child)?,
        false => network.within(|| first(&flags, child))??,
    };
    drop((go_reader, failure_writer));
    let mut child = Child { pid, status: None };
    let set_up = set_up(pid, maps, limits, flags).and_then(|()| go.write_all(&[0]));
    match set_up.and_then(|()| read_failure(&mut failure)) {
        Ok(()) => {
            let own = |kind| flags.contains(kind);
            let (own_user, own_mounts) = (own(CloneFlags::CLONE_NEWUSER), own(CloneFlags::CLONE_NEWNS));
            Ok(Started { child, own_user, own_mounts })
        }
        Err(error) => {
            // The child waits for `go`, or has ended.
            let _ = child.kill().and_then(|()| child.wait());
            Err(error)
        }
    }
}

/// The sets of namespaces to try, the best first.
fn attempts(maps: &IdMaps) -> Vec<CloneFlags> {
    #[cfg(feature = "unjailed-bench")]
    if crate::host::unjailed::is_chosen() {
        return vec![CloneFlags::empty()];
    }
    let all = OWN | CloneFlags::CLONE_NEWUSER;
    match maps.belong_to_user {
        true => vec![all | CloneFlags::CLONE_NEWNET],
        false => vec![all, OWN, CloneFlags::empty()],
    }
}

/// Makes the child with the first set of namespaces that the host allows.
fn first(
    attempts: &[CloneFlags],
    mut child: impl FnMut(CloneFlags) -> nix::Result<Pid>,
) -> nix::Result<(Pid, CloneFlags)> {
    let mut result = Err(Errno::EINVAL);
    for flags in attempts {
        result = child(*flags).map(|pid| (pid, *flags));
        // EINVAL: the kernel was built without such a namespace. ENOSPC, EUSERS: their number is limited.
        if !matches!(result, Err(Errno::EPERM | Errno::EINVAL | Errno::ENOSPC | Errno::EUSERS)) {
            break;
        }
    }
    result
}

/// Whether the host lets this process make a child in new namespaces of these kinds.
pub(crate) fn can_clone(flags: CloneFlags) -> bool {
    clone(flags, || ()).is_ok_and(|pid| Child { pid, status: None }.wait().is_ok())
}

/// Makes a child that runs `body` and ends.
fn clone(flags: CloneFlags, body: impl FnOnce()) -> nix::Result<Pid> {
    let arguments = libc::clone_args {
        flags: u64::from(flags.bits().cast_unsigned()),
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    // SAFETY: without `CLONE_VM` and a stack, the call behaves like `fork`. This process has one thread, and `body` makes system calls
    // only, so that locks of the C library do not matter.
    let pid = Errno::result(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) })?;
    if pid == 0 {
        body();
        // SAFETY: `_exit` ends the child without running exit handlers.
        unsafe { libc::_exit(NOT_EXECUTED) }
    }
    Ok(Pid::from_raw(i32::try_from(pid).map_err(|_| Errno::EOVERFLOW)?))
}

/// Settings of the child, which waits.
fn set_up(pid: Pid, maps: &IdMaps, limits: ProcessLimits, flags: CloneFlags) -> io::Result<()> {
    if flags.contains(CloneFlags::CLONE_NEWUSER) {
        maps.write(pid)?;
    }
    match fs::write(format!("/proc/{pid}/oom_score_adj"), limits.oom_score_adj.to_string()) {
        // Only the host's root can lower it.
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
        _ => {}
    }
    let child = rustix::process::Pid::from_raw(pid.as_raw());
    prlimit(child, Resource::Core, both(Some(0)))?;
    match prlimit(child, Resource::Nofile, both(Some(limits.open_files))) {
        // Only a privileged process can raise the hard limit.
        Err(rustix::io::Errno::PERM) => prlimit(child, Resource::Nofile, both(getrlimit(Resource::Nofile).maximum))?,
        result => result?,
    };
    Ok(())
}

/// A hard limit that is also the soft one.
fn both(limit: Option<u64>) -> Rlimit {
    Rlimit { current: limit, maximum: limit }
}

/// Waits until the program is executed, which closes the pipe, or until the child has written why it is not.
fn read_failure(failure: &mut PipeReader) -> io::Result<()> {
    let mut errno = [0; 4];
    match failure.read(&mut errno)? {
        0 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
    }
}

fn report(failure: &impl AsFd, errno: Errno) {
    // The parent reads nothing else, so a failed write looks like a success to it. A pipe takes four bytes.
    let _ = nix::unistd::write(failure, &(errno as i32).to_ne_bytes());
}

/// Path, arguments and environment of a program, as `execve` takes them.
struct Image {
    path: CString,
    arguments: Vec<CString>,
}

impl Image {
    fn of(program: &Program) -> Result<Self, NulError> {
        let path = CString::new(program.path.as_os_str().as_bytes())?;
        let arguments = program.arguments.iter().map(|argument| CString::new(argument.as_str()));
        let arguments = std::iter::once(Ok(path.clone())).chain(arguments).collect::<Result<_, _>>()?;
        Ok(Self { path, arguments })
    }
}

/// What the child needs to execute its program.
struct ChildSetup<'a> {
    image: &'a Image,
    program: &'a Program<'a>,
    go: &'a PipeReader,
    /// The end of the pipe that the parent writes to.
    parents_go: RawFd,
}

impl ChildSetup<'_> {
    /// Executes the program. It makes system calls only.
    fn run(&self) -> nix::Result<std::convert::Infallible> {
        // With a copy of the parent's end, the child would wait for ever if the parent was killed or gave up.
        // SAFETY: nothing in the child uses the descriptor, and the child does not return, so nothing closes it again.
        Errno::result(unsafe { libc::close(self.parents_go) })?;
        if nix::unistd::read(self.go, &mut [0])? != 1 {
            return Err(Errno::ECANCELED);
        }
        nix::unistd::setsid()?;
        if let Some(terminal) = self.program.terminal {
            // SAFETY: TIOCSCTTY takes no pointer, and the descriptor is open in this process.
            Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) })?;
        }
        for (fd, number) in self.program.stdio.iter().zip(0..) {
            // SAFETY: nothing in the child owns a standard stream.
            let _ = std::mem::ManuallyDrop::new(unsafe { dup2_raw(fd, number) }?);
        }
        // All other descriptors close at `execve`.
        close_all_on_exec()?;
        keep_on_exec(self.program.inherited.as_raw_fd())?;
        let no_environment: [&std::ffi::CStr; 0] = [];
        execve(&self.image.path, &self.image.arguments, &no_environment)
    }
}

fn keep_on_exec(fd: RawFd) -> nix::Result<()> {
    // SAFETY: F_SETFD takes no pointer, and the descriptor is open in this process.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }).map(drop)
}
