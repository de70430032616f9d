//! The guest's clocks. The VMM synchronizes the time of day with the host's.

use rustix::time::{ClockId, clock_gettime};

use crate::error::Error;
use crate::sys::clock;

/// Nanoseconds since 1970.
pub(crate) fn time_ns() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

/// Adds `offset_ns` to the time of day, at once (`set`) or gradually.
pub(crate) fn adjust(offset_ns: i64, set: bool) -> Result<(), Error> {
    let adjusted = if set { clock::step(offset_ns) } else { clock::slew(offset_ns / 1000) };
    adjusted.map_err(Error::at("adjust the clock"))
}

/// Nanoseconds since the kernel started its clock (`CLOCK_BOOTTIME`).
pub(crate) fn uptime_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}
