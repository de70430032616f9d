//! Processes the agent made, and the streams of each.

use std::os::fd::{AsFd, OwnedFd};

use agent::{ExitStatus, Failure, ProcessId, Stdio};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::WaitStatus;

use crate::connection;
use crate::container::Spawned;
use crate::container::init::ChildStdio;
use crate::container::report::Channel;
use crate::error::Error;
use crate::streams::Pump;

/// How far a process has come.
#[derive(Debug)]
pub(crate) enum Phase {
    /// It sets itself up; the call that asked for it waits.
    SettingUp {
        /// Id of the call.
        call: u64,
    },
    /// It waits to be started.
    Created,
    /// It was told to execute its program; a call waits.
    Starting {
        /// Id of the call.
        call: u64,
    },
    /// Its program runs.
    Running,
}

/// A process the agent made.
pub(crate) struct Process {
    /// Its name.
    pub(crate) id: ProcessId,
    /// A descriptor of it.
    pub(crate) pidfd: OwnedFd,
    /// Its reports, until its program runs.
    pub(crate) channel: Option<Channel>,
    /// How far it is.
    pub(crate) phase: Phase,
    /// Why it did not get further.
    pub(crate) failure: Option<Failure>,
    /// Host connection of its terminal, until the terminal is there.
    pub(crate) terminal: Option<OwnedFd>,
    /// Its output streams that are still open.
    pub(crate) outputs: Vec<u32>,
    /// Whether it runs as any other once it is set up.
    pub(crate) usual: bool,
    /// How it ended.
    pub(crate) status: Option<ExitStatus>,
}

impl Process {
    /// A process that was just made for `call`.
    pub(crate) fn new(id: ProcessId, spawned: Spawned, terminal: Option<OwnedFd>, usual: bool, call: u64) -> Self {
        Self {
            id,
            pidfd: spawned.pidfd,
            channel: Some(spawned.channel),
            phase: Phase::SettingUp { call },
            failure: None,
            terminal,
            outputs: Vec::new(),
            usual,
            status: None,
        }
    }
}

/// The agent's side of a new process's streams.
pub(crate) struct HostStdio {
    /// Pumps for input.
    pub(crate) inputs: Vec<Pump>,
    /// Pumps for output.
    pub(crate) outputs: Vec<Pump>,
    /// Host connection of a terminal that is not there yet.
    pub(crate) terminal: Option<OwnedFd>,
}

/// Makes both sides of a process's streams; absent ones are the null device `null`.
pub(crate) fn make_stdio(stdio: &Stdio, null: &OwnedFd) -> Result<(ChildStdio, HostStdio), Error> {
    let mut host = HostStdio { inputs: Vec::new(), outputs: Vec::new(), terminal: None };
    let child = match *stdio {
        Stdio::Terminal { port, size, bare_lines } => {
            host.terminal = Some(connect(port)?);
            ChildStdio::Terminal { size, bare_lines }
        }
        Stdio::Streams { stdin, stdout, stderr } => {
            let stdin = host.input(stdin, null)?;
            ChildStdio::Streams([stdin, host.output(stdout, null)?, host.output(stderr, null)?])
        }
    };
    Ok((child, host))
}

fn connect(port: u32) -> Result<OwnedFd, Error> {
    connection::connect(port).map_err(Error::at(format!("connect a stream to host port {port}")))
}

impl HostStdio {
    fn input(&mut self, port: Option<u32>, null: &OwnedFd) -> Result<OwnedFd, Error> {
        let Some(port) = port else { return duplicate(null) };
        let (read, write) = pipe()?;
        set_non_blocking(&write)?;
        self.inputs.push(Pump::new(connect(port)?, write));
        Ok(read)
    }

    fn output(&mut self, port: Option<u32>, null: &OwnedFd) -> Result<OwnedFd, Error> {
        let Some(port) = port else { return duplicate(null) };
        let (read, write) = pipe()?;
        set_non_blocking(&read)?;
        self.outputs.push(Pump::new(read, connect(port)?));
        Ok(write)
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    pipe_with(PipeFlags::CLOEXEC).map_err(Error::at("make a pipe"))
}

fn set_non_blocking(fd: &OwnedFd) -> Result<(), Error> {
    rustix::io::ioctl_fionbio(fd, true).map_err(Error::at("make a pipe non-blocking"))
}

/// A further descriptor of the same thing.
pub(crate) fn duplicate(fd: impl AsFd) -> Result<OwnedFd, Error> {
    fd.as_fd()
        .try_clone_to_owned()
        .map_err(|error| Error::at("duplicate a descriptor")(Errno::from_io_error(&error).unwrap_or(Errno::MFILE)))
}

/// The two pumps of a terminal: its output, and its input.
pub(crate) fn terminal_pumps(master: OwnedFd, host: OwnedFd) -> Result<(Pump, Pump), Error> {
    rustix::io::ioctl_fionbio(&master, true).map_err(Error::at("make a terminal non-blocking"))?;
    let input = Pump::new(duplicate(&host)?, duplicate(&master)?);
    Ok((Pump::new(master, host), input))
}

/// How a reaped process ended.
pub(crate) fn exit_status(status: WaitStatus) -> ExitStatus {
    let byte = |value: i32| u8::try_from(value).unwrap_or(u8::MAX);
    match status.terminating_signal() {
        Some(signal) => ExitStatus::Signaled(byte(signal)),
        None => ExitStatus::Exited(status.exit_status().map_or(u8::MAX, byte)),
    }
}
