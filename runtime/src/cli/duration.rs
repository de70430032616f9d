//! Spans of time as Go writes them, and so runc's callers do.

use std::time::Duration;

/// Reads `5s`, `500ms`, `1h30m` or `1.5s`.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let invalid = || format!("`{text}` is no duration such as `5s` or `500ms`");
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let unit = rest.find(|letter: char| letter != '.' && !letter.is_ascii_digit()).ok_or_else(invalid)?;
        let (number, after) = rest.split_at(unit);
        let end = after.find(|letter: char| letter == '.' || letter.is_ascii_digit()).unwrap_or(after.len());
        let number: f64 = number.parse().map_err(|_| invalid())?;
        seconds += number * length(&after[..end]).ok_or_else(invalid)?;
        rest = &after[end..];
    }
    let duration = Duration::try_from_secs_f64(seconds).map_err(|_| invalid())?;
    // runc refuses it, too: there would be no end of telling.
    if duration.is_zero() { Err("duration interval must be greater than 0".into()) } else { Ok(duration) }
}

/// Seconds of a unit.
fn length(unit: &str) -> Option<f64> {
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
    fn durations_are_read_as_go_does() {
        assert_eq!(parse("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(parse("1h1.5m"), Ok(Duration::from_secs(3690)));
        for bad in ["", "5", "s", "0s", "-1s", "5 s", "1.2.3s", "5x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
