//! The state of a process before and during `execve(2)`.

use std::ffi::{CString, c_char, c_ulong};
use std::ptr;

use rustix::io::Errno;

use super::signals::sigchld_set;
use super::{Result, check};

/// Resets the signal mask, the disposition of `SIGPIPE` and the timer slack to the kernel's defaults. The agent, Rust's
/// runtime and the agent's real-time policy have changed them.
pub(crate) fn reset_signals_and_timers() -> Result<()> {
    /// The kernel's default timer slack, in nanoseconds.
    const TIMER_SLACK: libc::c_ulong = 50_000;
    let set = sigchld_set()?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, TIMER_SLACK) })?;
    // SAFETY: `set` is a valid signal set, SIG_DFL a valid disposition.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        check(libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut()))?;
    }
    Ok(())
}

/// Sets the execution domain of the caller.
pub(crate) fn set_personality(domain: c_ulong) -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::personality(domain) })?;
    Ok(())
}

/// Executes the program at `path`. Returns only on failure.
pub(crate) fn execute(path: &CString, args: &[CString], env: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: path and every element of the two NULL-terminated arrays end in NUL and outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Ends this process at once, without the exit handlers that it inherited from the agent.
pub(crate) fn exit() -> ! {
    // SAFETY: `_exit` runs no handler and touches no memory.
    unsafe { libc::_exit(1) }
}
