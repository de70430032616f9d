//! Processes that the agent made: their state, their standard streams, and their reports while they are set up.

pub(crate) mod channel;
pub(crate) mod stdio;

use std::os::fd::OwnedFd;

use agent::{ExitStatus, Failure, ProcessId};
use rustix::process::WaitStatus;

use self::channel::Channel;

/// A process that was just made.
pub(crate) struct Spawned {
    /// Its pid in the guest.
    pub(crate) pid: i32,
    /// A pidfd of it.
    pub(crate) pidfd: OwnedFd,
    /// The agent's end of the connection to it.
    pub(crate) channel: Channel,
}

/// The progress of a process.
#[derive(Debug)]
pub(crate) enum Phase {
    /// It sets itself up. The call that requested it is not answered yet.
    SettingUp {
        /// Id of the call.
        call: u64,
    },
    /// It is set up and waits for its start.
    Created,
    /// It was released to execute its program. A call is not answered yet.
    Starting {
        /// Id of the call.
        call: u64,
    },
    /// It executed its program.
    Running,
}

/// A process that the agent made.
pub(crate) struct Process {
    /// Its id.
    pub(crate) id: ProcessId,
    /// A pidfd of it.
    pub(crate) pidfd: OwnedFd,
    /// Receives its reports until it executes its program.
    pub(crate) channel: Option<Channel>,
    /// Its progress.
    pub(crate) phase: Phase,
    /// The reason why it does not reach the next phase.
    pub(crate) failure: Option<Failure>,
    /// Connection to the host for its terminal, until the terminal is open.
    pub(crate) terminal: Option<OwnedFd>,
    /// Ids of its output streams that are still open.
    pub(crate) outputs: Vec<u32>,
    /// Whether it gets the normal scheduling policy when it is set up.
    pub(crate) normal_scheduling: bool,
    /// Its exit status.
    pub(crate) status: Option<ExitStatus>,
}

impl Process {
    /// A process that was just made for `call`. `terminal` is the host's connection for its terminal.
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

/// Converts the status of a reaped process.
pub(crate) fn exit_status(status: WaitStatus) -> ExitStatus {
    let byte = |value: i32| u8::try_from(value).unwrap_or(u8::MAX);
    match status.terminating_signal() {
        Some(signal) => ExitStatus::Signaled(byte(signal)),
        None => ExitStatus::Exited(status.exit_status().map_or(u8::MAX, byte)),
    }
}

/// The name of a process in messages.
pub(crate) fn display_name(id: &ProcessId) -> String {
    match &id.exec {
        None => format!("container {}", id.container),
        Some(exec) => format!("exec {exec} of container {}", id.container),
    }
}
