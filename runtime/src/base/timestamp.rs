//! Timestamps in the formats that runc writes.

use std::time::{SystemTime, UNIX_EPOCH};

const SECONDS_PER_DAY: u64 = 24 * 60 * 60;

/// Formats a time for the log: RFC 3339 in UTC with whole seconds, such as `2006-01-02T15:04:05Z`.
pub(crate) fn rfc3339_seconds(time: SystemTime) -> String {
    format!("{}Z", date_and_time(since_epoch(time).as_secs()))
}

/// Formats a time as Go does in JSON: RFC 3339 in UTC with nanoseconds, without trailing zeros.
pub(crate) fn rfc3339_nanoseconds(time: SystemTime) -> String {
    let elapsed = since_epoch(time);
    let fraction = format!(".{:09}", elapsed.subsec_nanos());
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    format!("{}{fraction}Z", date_and_time(elapsed.as_secs()))
}

/// Formats the time of day as `HH:MM` in UTC, which is also the time zone of guests.
pub(crate) fn time_of_day(time: SystemTime) -> String {
    let second = since_epoch(time).as_secs() % SECONDS_PER_DAY;
    format!("{:02}:{:02}", second / 3600, second / 60 % 60)
}

fn since_epoch(time: SystemTime) -> std::time::Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn date_and_time(seconds: u64) -> String {
    let (year, month, day) = date(seconds / SECONDS_PER_DAY);
    let second = seconds % SECONDS_PER_DAY;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// Year, month and day of the Gregorian calendar, `days` after 1970-01-01.
fn date(mut days: u64) -> (u64, usize, u64) {
    let mut year = 1970;
    while days >= days_in_year(year) {
        days -= days_in_year(year);
        year += 1;
    }
    let february = days_in_year(year) - 337;
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

fn days_in_year(year: u64) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    if leap { 366 } else { 365 }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64, nanos: u32) -> SystemTime {
        UNIX_EPOCH + Duration::new(seconds, nanos)
    }

    #[test]
    fn seconds_become_calendar_dates() {
        assert_eq!(rfc3339_seconds(at(0, 0)), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339_seconds(at(951_782_400, 0)), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339_seconds(at(1_767_225_599, 0)), "2025-12-31T23:59:59Z");
        assert_eq!(rfc3339_seconds(at(4_107_542_400, 0)), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn the_time_of_day_has_hours_and_minutes() {
        assert_eq!(time_of_day(at(86_400 + 3 * 3600 + 7 * 60 + 59, 0)), "03:07");
    }

    #[test]
    fn fractions_have_no_trailing_zeros() {
        assert_eq!(rfc3339_nanoseconds(at(1, 340_898_200)), "1970-01-01T00:00:01.3408982Z");
        assert_eq!(rfc3339_nanoseconds(at(1, 0)), "1970-01-01T00:00:01Z");
    }
}
