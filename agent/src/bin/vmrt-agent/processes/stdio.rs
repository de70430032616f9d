//! The standard streams of a new process.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent::{Stdio, TerminalSize};
use rustix::fs::{FileType, Uid};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::Error;
use crate::streams::host::Host;
use crate::streams::pump::Pump;
use crate::sys::files::duplicate;

/// The new process's end of its standard streams.
pub(crate) enum ChildStdio {
    /// Input, output and error output.
    Streams([OwnedFd; 3]),
    /// A terminal, which the process opens in its container.
    Terminal {
        /// Initial size.
        size: Option<TerminalSize>,
        /// Whether it writes lines without a carriage return.
        no_carriage_return: bool,
    },
}

impl ChildStdio {
    /// Changes the owner of pipes to `uid`. In a user namespace the process itself lacks the privilege to do that.
    pub(crate) fn set_owner(&self, uid: Uid) -> Result<(), Error> {
        match self {
            Self::Streams(streams) => streams.iter().try_for_each(|stream| set_stream_owner(stream.as_fd(), uid)),
            Self::Terminal { .. } => Ok(()),
        }
        .map_err(Error::at("change the owner of a standard stream"))
    }
}

/// Changes the owner of a pipe or terminal, so that the process's user can open it again, as `/dev/stdout`. Devices
/// such as `/dev/null` are accessible to every user.
pub(crate) fn set_stream_owner(stream: BorrowedFd<'_>, uid: Uid) -> rustix::io::Result<()> {
    let stat = rustix::fs::fstat(stream)?;
    let has_owner = FileType::from_raw_mode(stat.st_mode) == FileType::Fifo || rustix::termios::isatty(stream);
    match has_owner && stat.st_uid != uid.as_raw() {
        true => rustix::fs::fchown(stream, Some(uid), None),
        false => Ok(()),
    }
}

/// The agent's end of a new process's streams.
pub(crate) struct HostStdio {
    /// Pumps for input.
    pub(crate) inputs: Vec<Pump>,
    /// Pumps for output.
    pub(crate) outputs: Vec<Pump>,
    /// Connection to the host for a terminal that is not open yet.
    pub(crate) terminal: Option<OwnedFd>,
}

/// Makes both ends of a process's streams. `null`, the null device, replaces absent ones.
pub(crate) fn make(stdio: &Stdio, host: &Host, null: &OwnedFd) -> Result<(ChildStdio, HostStdio), Error> {
    let mut made = HostStdio { inputs: Vec::new(), outputs: Vec::new(), terminal: None };
    let child = match *stdio {
        Stdio::Terminal { port, size, no_carriage_return } => {
            made.terminal = Some(connect(host, port)?);
            ChildStdio::Terminal { size, no_carriage_return }
        }
        Stdio::Streams { stdin, stdout, stderr } => {
            let stdin = made.add_input(stdin, host, null)?;
            ChildStdio::Streams([stdin, made.add_output(stdout, host, null)?, made.add_output(stderr, host, null)?])
        }
    };
    Ok((child, made))
}

fn connect(host: &Host, port: u32) -> Result<OwnedFd, Error> {
    host.connect(port).map_err(Error::at(format!("connect a stream to host port {port}")))
}

impl HostStdio {
    fn add_input(&mut self, port: Option<u32>, host: &Host, null: &OwnedFd) -> Result<OwnedFd, Error> {
        let Some(port) = port else { return duplicate(null) };
        let (read, write) = make_pipe()?;
        set_non_blocking(&write)?;
        self.inputs.push(Pump::new(connect(host, port)?, write));
        Ok(read)
    }

    fn add_output(&mut self, port: Option<u32>, host: &Host, null: &OwnedFd) -> Result<OwnedFd, Error> {
        let Some(port) = port else { return duplicate(null) };
        let (read, write) = make_pipe()?;
        set_non_blocking(&read)?;
        self.outputs.push(Pump::new(read, connect(host, port)?));
        Ok(write)
    }
}

fn make_pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    pipe_with(PipeFlags::CLOEXEC).map_err(Error::at("make a pipe"))
}

fn set_non_blocking(fd: &OwnedFd) -> Result<(), Error> {
    rustix::io::ioctl_fionbio(fd, true).map_err(Error::at("make a pipe non-blocking"))
}

/// The pumps for the output and the input of a terminal.
pub(crate) fn terminal_pumps(master: OwnedFd, host: OwnedFd) -> Result<(Pump, Pump), Error> {
    rustix::io::ioctl_fionbio(&master, true).map_err(Error::at("make a terminal non-blocking"))?;
    let input = Pump::new(duplicate(&host)?, duplicate(&master)?);
    Ok((Pump::new(master, host), input))
}
