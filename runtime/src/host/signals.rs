//! Signals: their names, and those a command waits for while its container runs.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use thiserror::Error;

/// Why a signal cannot be sent; in runc's words.
#[derive(Debug, Error)]
pub(crate) enum SignalError {
    #[error("unknown signal \"{0}\"")]
    Unknown(String),
    #[error("unable to signal init: invalid argument")]
    Invalid,
}

/// Highest number of a signal.
const LAST: i32 = 64;

/// Signals that the container gets in the command's place.
const FORWARDED: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
];

/// Signals that concern the command's own terminal.
const TERMINAL: [Signal; 3] = [Signal::SIGWINCH, Signal::SIGTSTP, Signal::SIGCONT];

/// The number of a signal that is given as `TERM`, `SIGTERM` or `15`.
pub(crate) fn parse(text: &str) -> Result<i32, SignalError> {
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=LAST).contains(&number) { Ok(number) } else { Err(SignalError::Invalid) };
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    let signal = match name.as_str() {
        "SIGCLD" => Signal::SIGCHLD,
        "SIGIOT" => Signal::SIGABRT,
        "SIGPOLL" => Signal::SIGIO,
        name => name.parse().map_err(|_| SignalError::Unknown(text.to_owned()))?,
    };
    Ok(signal as i32)
}

/// Signals that are read instead of having their effect, from now until this process ends.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Takes over what ends a process, and with a terminal what concerns that.
    ///
    /// Without a terminal of its own to give back, a command is stopped and continued like any other.
    pub(crate) fn take(terminal: bool) -> nix::Result<Self> {
        let mut set: SigSet = FORWARDED.into_iter().collect();
        if terminal {
            set.extend(TERMINAL);
        }
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// The next one, if one came.
    pub(crate) fn next(&self) -> Option<Signal> {
        let info = self.0.read_signal().ok()??;
        Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["KILL", "SIGKILL", "kill", "sigkill", "9"] {
            assert_eq!(parse(text).unwrap(), 9, "{text}");
        }
        assert_eq!((parse("cld").unwrap(), parse("SIGIOT").unwrap(), parse("POLL").unwrap()), (17, 6, 29));
        assert_eq!(parse("0").unwrap(), 0);
        assert_eq!(parse("64").unwrap(), 64);
        assert_eq!(parse("FOO").unwrap_err().to_string(), "unknown signal \"FOO\"");
        assert!(matches!(parse("65"), Err(SignalError::Invalid)));
        assert!(matches!(parse("-1"), Err(SignalError::Invalid)));
        assert!(matches!(parse(""), Err(SignalError::Unknown(_))));
    }

    #[test]
    fn taken_signals_are_read_in_place_of_their_effect() {
        let signals = Signals::take(true).unwrap();
        assert_eq!(signals.next(), None);
        nix::sys::signal::raise(Signal::SIGTERM).unwrap();
        nix::sys::signal::raise(Signal::SIGWINCH).unwrap();
        let mut got = [signals.next().unwrap(), signals.next().unwrap()];
        got.sort();
        assert_eq!(got, [Signal::SIGTERM, Signal::SIGWINCH]);
        assert_eq!(signals.next(), None);
    }
}
