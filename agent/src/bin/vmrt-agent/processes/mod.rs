//! Processes that the agent made: their state, their standard streams, and their reports while they are set up.

pub(crate) mod channel;
pub(crate) mod stdio;

use std::os::fd::OwnedFd;

use agent::{ExitStatus, Failure, ProcessId};
use rustix::process::WaitStatus;

use self::channel::Channel;

/// A process that was just made, and reports through `channel`.
pub(crate) struct Spawned {
    /// Its pid in the guest.
    pub(crate) pid: i32,
    /// A descriptor of it.
    pub(crate) pidfd: OwnedFd,
    /// The agent's end.
    pub(crate) channel: Channel,
}

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
    pub(crate) normal_scheduling: bool,
    /// How it ended.
    pub(crate) status: Option<ExitStatus>,
}

impl Process {
    /// A process that was just made for `call`.
    pub(crate) fn new(
        id: ProcessId,
        spawned: Spawned,
        terminal: Option<OwnedFd>,
        normal_scheduling: bool,
        call: u64,
    ) -> Self {
        Self {
            id,
            pidfd: spawned.pidfd,
            channel: Some(spawned.channel),
            phase: Phase::SettingUp { call },
            failure: None,
            terminal,
            outputs: Vec::new(),
            normal_scheduling,
            status: None,
        }
    }
}

/// How a reaped process ended.
pub(crate) fn exit_status(status: WaitStatus) -> ExitStatus {
    let byte = |value: i32| u8::try_from(value).unwrap_or(u8::MAX);
    match status.terminating_signal() {
        Some(signal) => ExitStatus::Signaled(byte(signal)),
        None => ExitStatus::Exited(status.exit_status().map_or(u8::MAX, byte)),
    }
}

/// How messages name a process.
pub(crate) fn display_name(id: &ProcessId) -> String {
    match &id.exec {
        None => format!("container {}", id.container),
        Some(exec) => format!("exec {exec} of container {}", id.container),
    }
}
