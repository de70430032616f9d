//! Faults of the VMM's own code: signals that would end the process without a word in its log.

use std::io;
use std::mem::zeroed;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};

use super::last_line::LastLine;

/// The signals of faults, with their names.
const SIGNALS: [(libc::c_int, &str); 6] = [
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGTRAP, "SIGTRAP"),
    (libc::SIGABRT, "SIGABRT"),
];

static PANICKED: AtomicBool = AtomicBool::new(false);

/// Has the log say which signal ended the process. A second fault, in the handler, ends the process at once.
pub(super) fn arm() -> io::Result<()> {
    // SAFETY: all zeros are a valid `sigaction`: no flags, and an empty mask.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = on_fault as *const () as usize;
    // A thread that has used up its stack has another one for this.
    action.sa_flags = libc::SA_ONSTACK | libc::SA_RESETHAND;
    for (signal, _) in SIGNALS {
        // SAFETY: the action is valid, and its handler makes only calls that a signal handler may make.
        if unsafe { libc::sigaction(signal, &raw const action, null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Says that the log has the message of a panic, which is then the cause of the abort that follows.
pub fn panic_is_logged() {
    PANICKED.store(true, Ordering::Relaxed);
}

/// Writes the signal to the log, and ends the process with the status of one that the signal ended.
extern "C" fn on_fault(signal: libc::c_int) {
    let status = 128 + signal;
    if PANICKED.load(Ordering::Relaxed) {
        // SAFETY: `_exit` may be called in a signal handler.
        unsafe { libc::_exit(status) }
    }
    let mut line = LastLine::new("the VMM crashed");
    line.add(" got signal ");
    line.add(SIGNALS.iter().find(|(number, _)| *number == signal).map_or("unknown", |(_, name)| name));
    line.end_process(status)
}
