//! Processes: their ids, standard streams and exit statuses.

use serde::{Deserialize, Serialize};

/// Id of a process: a container's first one, or a further one that was executed in it.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct ProcessId {
    /// Id of the container, unique in its sandbox.
    pub container: String,
    /// Id of the exec, unique in its container; absent for the container's first process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<String>,
}

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TerminalSize {
    /// Number of lines.
    pub rows: u16,
    /// Number of characters in a line.
    pub columns: u16,
}

/// Destinations of a process's standard streams: vsock ports of the host, to each of which the agent opens one
/// connection.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdio {
    /// The process gets a pseudo-terminal of its container. One connection carries both directions.
    Terminal {
        /// Port of the connection.
        port: u32,
        /// Initial size of the terminal, if known.
        size: Option<TerminalSize>,
        /// Whether the terminal writes lines without a carriage return. For output that does not go to a terminal of
        /// the user.
        no_carriage_return: bool,
    },
    /// Separate streams. The process gets `/dev/null` for an absent one.
    Streams {
        /// Port for standard input. The host signals the end of file by a half-close.
        stdin: Option<u32>,
        /// Port for standard output. The agent closes the connection after the last writer.
        stdout: Option<u32>,
        /// Port for standard error.
        stderr: Option<u32>,
    },
}

/// A process of a container, from the guest's `/proc`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct GuestProcess {
    /// Its pid in the container.
    pub pid: i32,
    /// Its effective user id.
    pub uid: u32,
    /// The line in `/proc/PID/stat`. Its pids are those of the guest's initial pid namespace.
    pub stat: String,
    /// Its arguments, joined with spaces. Empty for a zombie.
    pub arguments: String,
}

/// The processes of a container.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ProcessList {
    /// Milliseconds since the guest's kernel started its clock, to which the start times of processes relate.
    pub uptime_ms: u64,
    /// The processes.
    pub processes: Vec<GuestProcess>,
}

/// The exit status of a process.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It exited with this status.
    Exited(u8),
    /// It was ended by this signal.
    Signaled(u8),
}

impl ExitStatus {
    /// The status as shells, runc and engines show it: 128 plus the signal's number for an end by a signal.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128_u8.saturating_add(signal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_a_signal_is_the_one_of_a_shell() {
        assert_eq!(ExitStatus::Exited(255).code(), 255);
        assert_eq!(ExitStatus::Signaled(9).code(), 137);
        assert_eq!(ExitStatus::Signaled(200).code(), 255);
    }
}
