//! Changes of the time of day.

use super::{Result, check};

/// Changes the time of day by `nanoseconds` at once.
pub(crate) fn step(nanoseconds: i64) -> Result<()> {
    const SECOND: i64 = 1_000_000_000;
    adjust(|request| {
        request.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
        // With `ADJ_NANO` the second field is in nanoseconds and must not be negative.
        request.time =
            libc::timeval { tv_sec: nanoseconds.div_euclid(SECOND), tv_usec: nanoseconds.rem_euclid(SECOND) };
    })
}

/// Changes the time of day by `microseconds` gradually: the clock runs faster or slower by a 2000th until then.
pub(crate) fn slew(microseconds: i64) -> Result<()> {
    adjust(|request| {
        request.modes = libc::ADJ_OFFSET_SINGLESHOT;
        request.offset = microseconds;
    })
}

fn adjust(set: impl FnOnce(&mut libc::timex)) -> Result<()> {
    // SAFETY: all fields of a timex are integers, for which zero is valid.
    let mut request: libc::timex = unsafe { std::mem::zeroed() };
    set(&mut request);
    // SAFETY: `request` is a valid timex, which the kernel reads and writes.
    check(unsafe { libc::adjtimex(&raw mut request) })?;
    Ok(())
}
