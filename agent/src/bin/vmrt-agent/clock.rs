//! The guest's time of day, which the VMM keeps with the host's.

use rustix::time::{ClockId, clock_gettime};

use crate::error::Error;
use crate::sys;

/// Nanoseconds since 1970.
pub(crate) fn time_ns() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

/// Adds `missing_ns` to the time of day, at once (`set`) or little by little.
pub(crate) fn adjust(missing_ns: i64, set: bool) -> Result<(), Error> {
    let adjusted = if set { sys::step_clock(missing_ns) } else { sys::slew_clock(missing_ns / 1000) };
    adjusted.map_err(Error::at("adjust the clock"))
}
