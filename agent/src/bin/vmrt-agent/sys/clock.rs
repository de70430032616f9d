//! Changes of the time of day.

use super::{Result, check};

/// Makes the time of day differ by `nanoseconds` from what it was: at once.
pub(crate) fn step(nanoseconds: i64) -> Result<()> {
    const SECOND: i64 = 1_000_000_000;
    adjust(|request| {
        request.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
        // With `ADJ_NANO` the second part is nanoseconds, and it may not be negative.
        request.time =
            libc::timeval { tv_sec: nanoseconds.div_euclid(SECOND), tv_usec: nanoseconds.rem_euclid(SECOND) };
    })
}

/// Lets the time of day run faster, or slower, by a 2000th until it differs by `microseconds` from what it would have been.
pub(crate) fn slew(microseconds: i64) -> Result<()> {
    adjust(|request| {
        request.modes = libc::ADJ_OFFSET_SINGLESHOT;
        request.offset = microseconds;
    })
}

fn adjust(set: impl FnOnce(&mut libc::timex)) -> Result<()> {
    // SAFETY: a timex holds only numbers, for which zero is a value.
    let mut request: libc::timex = unsafe { std::mem::zeroed() };
    set(&mut request);
    // SAFETY: `request` is a valid timex, which the kernel reads and writes.
    check(unsafe { libc::adjtimex(&raw mut request) })?;
    Ok(())
}
