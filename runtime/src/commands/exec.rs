//! `vmrt exec`

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::exit;
use std::time::Duration;

use agent::{ExitStatus, ProcessId};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, setsid};
use oci_spec::runtime::Process;
use vmm::control::{Client, Request, Status};

use super::exec_process::{build, check_args, sub_cgroup};
use crate::base::container_id::ContainerId;
use crate::cli::ExecArgs;
use crate::commands::error::Error;
use crate::host::open_fds::close_all_except;
use crate::host::process::HostProcess;
use crate::host::scm_rights::send_pidfd;
use crate::host::signals::Signals;
use crate::sandbox::connection::{Connection, RequestError};
use crate::sandbox::context::Context;
use crate::sandbox::control_socket::control;
use crate::sandbox::foreground::{self, Screen};
use crate::sandbox::pid_file::write_pid_file;
use crate::sandbox::record::{Phase, Record};
use crate::sandbox::status::ask_status;
use crate::sandbox::vmm_process::KILLED;
use crate::terminal::stdio::{ProcessStdio, StdioOptions, console_size};
use crate::terminal::tty;

/// How long the guest may take to start a process.
const EXEC_DEADLINE: Duration = Duration::from_secs(30);

/// The same in a paused container, which may be that for as long as its owner likes: a year.
const PAUSED_DEADLINE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

pub(crate) fn run(context: &Context, args: &ExecArgs) -> Result<u8, Error> {
    check_args(args)?;
    let id: ContainerId = args.id.parse()?;
    let record = context.store.record(&id)?;
    check(&record)?;
    let mut client = control(&context.store.dir(&id)).map_err(RequestError::from)?;
    let patience = patience(&mut client, &record, args.ignore_paused)?;
    let process = build(args, &id, context)?;
    let stdio = open_stdio(args, &process)?;
    let signals = Signals::block(stdio.terminal.is_some() || stdio.console().is_some()).map_err(Error::Signals)?;
    let mut connection = Connection::new(client, Some(signals), None);
    let target = ProcessId { container: id.to_string(), exec: Some(unique()?) };
    let program = process.args().iter().flatten().next().cloned().unwrap_or_default();
    let cgroup = sub_cgroup(&args.cgroup)?;
    let request = Request::Exec { process: target.clone(), spec: Box::new(process), stdio: stdio.kind, cgroup };
    let started = connection.call(&request, &stdio.fds(), "start the process", patience);
    started.map_err(|error| Error::Exec(error.about(&program)))?;
    if args.detach {
        return detach(connection, &target, stdio, args);
    }
    tell_pid(args, Pid::this())?;
    let screen = stdio.terminal.as_ref().map_or(Screen::None, Screen::Own);
    attend(&mut connection, &target, screen)
}

fn check(record: &Record) -> Result<(), Error> {
    match record.phase_now() {
        Phase::Created | Phase::Running | Phase::Paused => Ok(()),
        Phase::Creating => Err(Error::BeingCreated),
        Phase::Stopped => Err(Error::ExecInStopped),
    }
}

/// How long the process may take to start: in a paused container until that goes on.
fn patience(client: &mut Client, record: &Record, ignore_paused: bool) -> Result<Duration, Error> {
    match ask_status(client, &record.id) {
        Ok(Status::Paused) if ignore_paused => Ok(PAUSED_DEADLINE),
        Ok(Status::Paused) => Err(Error::ExecInPaused),
        Ok(Status::Stopped(_)) => Err(Error::ExecInStopped),
        _ => Ok(EXEC_DEADLINE),
    }
}

fn open_stdio(args: &ExecArgs, process: &Process) -> Result<ProcessStdio, Error> {
    Ok(ProcessStdio::open(StdioOptions {
        terminal: process.terminal().unwrap_or_default(),
        detach: args.detach,
        console_socket: args.console_socket.as_deref(),
        size: console_size(process),
    })?)
}

/// A name no other exec of the container has: that of this process among all of the host.
fn unique() -> Result<String, Error> {
    let process = HostProcess::of(Pid::this().as_raw()).map_err(Error::OwnProcess)?;
    Ok(format!("{}-{}", process.pid, process.start_time))
}

/// A sandbox that ends takes the process with it.
fn attend(connection: &mut Connection, target: &ProcessId, screen: Screen) -> Result<u8, Error> {
    match foreground::wait(connection, target, screen) {
        Err(error) if error.is_end() => Err(Error::SandboxEnded),
        result => Ok(result.map(ExitStatus::code)?),
    }
}

/// Tells who wants to know which process stands for the one in the guest.
fn tell_pid(args: &ExecArgs, pid: Pid) -> Result<(), Error> {
    if let Some(path) = &args.pidfd_socket {
        let process = HostProcess::of(pid.as_raw()).map_err(Error::OwnProcess)?;
        send_pidfd(path, process, "setns")?;
    }
    Ok(args.pid_file.as_deref().map_or(Ok(()), |path| write_pid_file(path, pid.as_raw()))?)
}

/// Leaves a process behind that stands for the one in the guest: engines signal it, wait for it and take its status.
fn detach(connection: Connection, target: &ProcessId, stdio: ProcessStdio, args: &ExecArgs) -> Result<u8, Error> {
    // SAFETY: this process has one thread, so the child may do anything it could.
    match unsafe { fork() }.map_err(Error::Proxy)? {
        ForkResult::Parent { child } => {
            tell_pid(args, child)?;
            Ok(0)
        }
        ForkResult::Child => exit(proxy(connection, target, stdio).into()),
    }
}

fn proxy(mut connection: Connection, target: &ProcessId, stdio: ProcessStdio) -> u8 {
    let console = stdio.into_console();
    // What fails here leaves the process in its caller's session, which is no reason to lose the exec's status.
    let _ = leave_caller(&connection, console.as_ref());
    let screen = console.as_ref().map_or(Screen::None, |console| Screen::Made(console.as_fd()));
    attend(&mut connection, target, screen).unwrap_or(KILLED)
}

/// Gives back the caller's standard streams, whose end it may wait for, its terminal, and all else it left open.
fn leave_caller(connection: &Connection, console: Option<&OwnedFd>) -> nix::Result<()> {
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    drop(null);
    let mut keep = connection.raw_fds();
    keep.extend(console.map(AsRawFd::as_raw_fd));
    // SAFETY: the connection and the terminal are all that this process still uses; everything else was dropped, or
    // never had an owner here.
    unsafe { close_all_except(keep) }?;
    setsid()?;
    console.map_or(Ok(()), tty::make_controlling)
}
