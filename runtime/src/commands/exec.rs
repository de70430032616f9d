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
use crate::sandbox::foreground::{self, HostTerminal};
use crate::sandbox::pid_file::write_pid_file;
use crate::sandbox::record::{Phase, Record};
use crate::sandbox::status::request_status;
use crate::sandbox::vmm_process::KILLED;
use crate::terminal::stdio::{ProcessStdio, StdioOptions, console_size};
use crate::terminal::tty;

/// Time limit for the guest to start a process.
const EXEC_TIMEOUT: Duration = Duration::from_secs(30);

/// Time limit in a paused container, which may stay paused for long: one year.
const PAUSED_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

pub(crate) fn run(context: &Context, args: &ExecArgs) -> Result<u8, Error> {
    check_args(args)?;
    let id: ContainerId = args.id.parse()?;
    let record = context.store.record(&id)?;
    check(&record)?;
    let mut client = control(&context.store.dir(&id)).map_err(RequestError::from)?;
    let timeout = start_timeout(&mut client, &record, args.ignore_paused)?;
    let process = build(args, &id, context)?;
    let stdio = open_stdio(args, &process)?;
    let signals = Signals::block(stdio.terminal.is_some() || stdio.console().is_some()).map_err(Error::Signals)?;
    let mut connection = Connection::new(client, Some(signals), None);
    let target = ProcessId { container: id.to_string(), exec: Some(unique_name()?) };
    let program = process.args().iter().flatten().next().cloned().unwrap_or_default();
    let cgroup = sub_cgroup(&args.cgroup)?;
    let request = Request::Exec { process: target.clone(), spec: Box::new(process), stdio: stdio.kind, cgroup };
    let started = connection.call(&request, &stdio.fds(), "start the process", timeout);
    started.map_err(|error| Error::Exec(error.for_program(&program)))?;
    if args.detach {
        return detach(connection, &target, stdio, args);
    }
    report_pid(args, Pid::this())?;
    let terminal = stdio.terminal.as_ref().map_or(HostTerminal::None, HostTerminal::Own);
    wait(&mut connection, &target, terminal)
}

fn check(record: &Record) -> Result<(), Error> {
    match record.phase_now() {
        Phase::Created | Phase::Running | Phase::Paused => Ok(()),
        Phase::Creating => Err(Error::BeingCreated),
        Phase::Stopped => Err(Error::ExecInStopped),
    }
}

/// Returns the time limit for the start of the process. In a paused container it starts when the container is resumed.
fn start_timeout(client: &mut Client, record: &Record, ignore_paused: bool) -> Result<Duration, Error> {
    match request_status(client, &record.id) {
        Ok(Status::Paused) if ignore_paused => Ok(PAUSED_TIMEOUT),
        Ok(Status::Paused) => Err(Error::ExecInPaused),
        Ok(Status::Stopped(_)) => Err(Error::ExecInStopped),
        _ => Ok(EXEC_TIMEOUT),
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

/// Returns a name that is unique among the processes of a container: the pid and start time of this process on the host.
fn unique_name() -> Result<String, Error> {
    let process = HostProcess::of(Pid::this().as_raw()).map_err(Error::OwnProcess)?;
    Ok(format!("{}-{}", process.pid, process.start_time))
}

/// Waits for the end of the process and returns its exit status. The end of the sandbox also ends the process.
fn wait(connection: &mut Connection, target: &ProcessId, terminal: HostTerminal) -> Result<u8, Error> {
    match foreground::wait(connection, target, terminal) {
        Err(error) if error.is_disconnect() => Err(Error::SandboxEnded),
        result => Ok(result.map(ExitStatus::code)?),
    }
}

/// Reports the process on the host that is the proxy of the guest's process: its pidfd and its pid.
fn report_pid(args: &ExecArgs, pid: Pid) -> Result<(), Error> {
    if let Some(path) = &args.pidfd_socket {
        let process = HostProcess::of(pid.as_raw()).map_err(Error::OwnProcess)?;
        send_pidfd(path, process, "setns")?;
    }
    Ok(args.pid_file.as_deref().map_or(Ok(()), |path| write_pid_file(path, pid.as_raw()))?)
}

/// Forks the proxy of the process in the guest, which runs on after this command: engines signal it, wait for it and use its exit
/// status.
fn detach(connection: Connection, target: &ProcessId, stdio: ProcessStdio, args: &ExecArgs) -> Result<u8, Error> {
    // SAFETY: this process has one thread, so the child may run any code.
    match unsafe { fork() }.map_err(Error::Proxy)? {
        ForkResult::Parent { child } => {
            report_pid(args, child)?;
            Ok(0)
        }
        ForkResult::Child => exit(run_proxy(connection, target, stdio).into()),
    }
}

fn run_proxy(mut connection: Connection, target: &ProcessId, stdio: ProcessStdio) -> u8 {
    let console = stdio.into_console();
    // After a failure the proxy may stay in its caller's session. It still has to report the exit status.
    let _ = detach_from_caller(&connection, console.as_ref());
    let terminal = console.as_ref().map_or(HostTerminal::None, |console| HostTerminal::Console(console.as_fd()));
    wait(&mut connection, target, terminal).unwrap_or(KILLED)
}

/// Closes the caller's standard streams, whose end it may wait for, and all other inherited descriptors. Starts a new session, with
/// `console` as its controlling terminal.
fn detach_from_caller(connection: &Connection, console: Option<&OwnedFd>) -> nix::Result<()> {
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    drop(null);
    let mut used = connection.raw_fds();
    used.extend(console.map(AsRawFd::as_raw_fd));
    // SAFETY: this process uses only the connection and the console from here on. All other descriptors were dropped, or have
    // no owner in this process.
    unsafe { close_all_except(used) }?;
    setsid()?;
    console.map_or(Ok(()), tty::make_controlling)
}
