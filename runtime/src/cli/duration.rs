//! Durations in Go's format, which runc's callers use.

use std::time::Duration;

/// Parses a duration such as `5s`, `500ms`, `1h30m` or `1.5s`.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let invalid = || format!("`{text}` is not a duration such as `5s` or `500ms`");
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let unit = rest.find(|letter: char| letter != '.' && !letter.is_ascii_digit()).ok_or_else(invalid)?;
        let (number, after) = rest.split_at(unit);
        let end = after.find(|letter: char| letter == '.' || letter.is_ascii_digit()).unwrap_or(after.len());
        let number: f64 = number.parse().map_err(|_| invalid())?;
        seconds += number * seconds_of(&after[..end]).ok_or_else(invalid)?;
        rest = &after[end..];
    }
    let duration = Duration::try_from_secs_f64(seconds).map_err(|_| invalid())?;
    // runc refuses a zero interval, too: events would be printed without a pause.
    if duration.is_zero() { Err("duration interval must be greater than 0".into()) } else { Ok(duration) }
}

/// Returns the length of a unit in seconds.
fn seconds_of(unit: &str) -> Option<f64> {
    Some(match unit {
        "ns" => 1e-9,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_parsed_as_by_go() {
        assert_eq!(parse("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(parse("1h1.5m"), Ok(Duration::from_secs(3690)));
        for bad in ["", "5", "s", "0s", "-1s", "5 s", "1.2.3s", "5x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
