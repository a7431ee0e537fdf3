//! Durations as text: `500ms`, `30s`, `2min`, with the units of PostgreSQL's settings.

use std::time::Duration;

/// Units and their length in microseconds.
const UNITS: [(&str, u64); 6] = [
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("min", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
];

/// Reads a whole number with a unit (`us`, `ms`, `s`, `min`, `h`, `d`), with or without a space between them.
///
/// # Errors
/// A sentence that says what is wrong and what would be right.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    if number.is_empty() {
        return Err("a duration begins with a whole number, such as `30s` or `500ms`".to_owned());
    }
    let Some((_, unit_us)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        let what = if unit.is_empty() {
            "the unit is missing".to_owned()
        } else {
            format!("unknown unit `{unit}`")
        };
        return Err(format!(
            "{what}; write us, ms, s, min, h or d, such as `{number}s`"
        ));
    };
    let total_us = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(*unit_us));
    total_us
        .map(Duration::from_micros)
        .ok_or_else(|| format!("{number}{unit} is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_postgresql_s_units() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration(" 2 min "), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3_600)));
        assert_eq!(parse_duration("7us"), Ok(Duration::from_micros(7)));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
    }

    #[test]
    fn what_is_no_duration_says_what_would_be() {
        assert!(parse_duration("").unwrap_err().contains("whole number"));
        assert!(parse_duration("s").unwrap_err().contains("whole number"));
        assert!(parse_duration("30").unwrap_err().contains("`30s`"));
        assert!(
            parse_duration("30 sec")
                .unwrap_err()
                .contains("unknown unit `sec`")
        );
        assert!(
            parse_duration("99999999999999999999d")
                .unwrap_err()
                .contains("too long")
        );
    }
}
