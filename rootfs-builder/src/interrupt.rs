//! Ctrl-C and SIGTERM: the current step fails, and incomplete output is removed.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Installs handlers for the signals that ask the process to end. Programs that are executed later have the default action.
pub(crate) fn install() -> io::Result<()> {
    let flag = FLAG.get_or_init(Arc::default);
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(flag))?;
    }
    Ok(())
}

/// Returns an error after such a signal.
pub(crate) fn check() -> io::Result<()> {
    match FLAG.get().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
        true => Err(io::Error::other("interrupted")),
        false => Ok(()),
    }
}

/// A reader that returns an error after such a signal.
pub(crate) struct Interruptible<R>(pub(crate) R);

impl<R: Read> Read for Interruptible<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        check()?;
        self.0.read(buffer)
    }
}
