//! Signals: their names, and the signals that a command reads while its container runs.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use thiserror::Error;

/// The reason why a signal is not valid, in runc's words.
#[derive(Debug, Error)]
pub(crate) enum SignalError {
    #[error("unknown signal \"{0}\"")]
    Unknown(String),
    #[error("unable to signal init: invalid argument")]
    Invalid,
}

/// Highest signal number.
const MAX_SIGNAL: i32 = 64;

/// Signals that the command forwards to the container.
const FORWARDED: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
];

/// Signals of the terminal's size and of job control.
const TERMINAL: [Signal; 3] = [Signal::SIGWINCH, Signal::SIGTSTP, Signal::SIGCONT];

/// Returns the number of a signal that is given as `TERM`, `SIGTERM` or `15`.
pub(crate) fn parse(text: &str) -> Result<i32, SignalError> {
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=MAX_SIGNAL).contains(&number) { Ok(number) } else { Err(SignalError::Invalid) };
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

/// Blocked signals that are read from a signalfd(2). They stay blocked when this is dropped.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals to forward, and with `terminal` those of the terminal.
    ///
    /// Without a terminal to restore, `SIGTSTP` and `SIGCONT` keep their default effect.
    pub(crate) fn block(terminal: bool) -> nix::Result<Self> {
        let mut set: SigSet = FORWARDED.into_iter().collect();
        if terminal {
            set.extend(TERMINAL);
        }
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// Returns the next pending signal.
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
    fn a_signal_is_parsed_from_its_name_or_number() {
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
    fn blocked_signals_are_read_and_have_no_effect() {
        let signals = Signals::block(true).unwrap();
        assert_eq!(signals.next(), None);
        nix::sys::signal::raise(Signal::SIGTERM).unwrap();
        nix::sys::signal::raise(Signal::SIGWINCH).unwrap();
        let mut got = [signals.next().unwrap(), signals.next().unwrap()];
        got.sort();
        assert_eq!(got, [Signal::SIGTERM, Signal::SIGWINCH]);
        assert_eq!(signals.next(), None);
    }
}
