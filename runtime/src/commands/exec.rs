//! `vmrt exec`

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::exit;

use agent::{ExitStatus, ProcessId};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, setsid};
use oci_spec::runtime::Process;

use super::exec_process::{build, check_args, sub_cgroup};
use crate::base::container_id::ContainerId;
use crate::cli::ExecArgs;
use crate::commands::error::Error;
use crate::host::open_fds::close_all_except;
use crate::host::process::HostProcess;
use crate::host::scm_rights::send_pidfd;
use crate::host::signals::Signals;
use crate::sandbox::connection::Connection;
use crate::sandbox::context::Context;
use crate::sandbox::exec::{ExecClient, ExecRequest};
use crate::sandbox::foreground::{self, HostTerminal};
use crate::sandbox::pid_file::write_pid_file;
use crate::sandbox::vmm_process::KILLED;
use crate::terminal::stdio::{ProcessStdio, StdioOptions, console_size};
use crate::terminal::tty;

pub(crate) fn run(context: &Context, args: &ExecArgs) -> Result<u8, Error> {
    check_args(args)?;
    let id: ContainerId = args.id.parse()?;
    let client = ExecClient::connect(&context.store, &id, args.ignore_paused)?;
    let process = build(args, &id, context)?;
    let stdio = open_stdio(args, &process)?;
    let signals = Signals::block(stdio.terminal.is_some() || stdio.console().is_some()).map_err(Error::Signals)?;
    let request = ExecRequest { name: unique_name()?, process, cgroup: sub_cgroup(&args.cgroup)? };
    let (mut connection, target) = client.start(request, &stdio, signals)?;
    if args.detach {
        return detach(connection, &target, stdio, args);
    }
    report_pid(args, Pid::this())?;
    let terminal = stdio.terminal.as_ref().map_or(HostTerminal::None, HostTerminal::Own);
    wait(&mut connection, &target, terminal)
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
