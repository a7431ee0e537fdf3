//! Durations and sizes as text: `500ms`, `16GB`, with the units of PostgreSQL's settings.

use std::time::Duration;

/// What a text with a unit stands for.
struct Quantity {
    /// What the text is called where it is wrong.
    name: &'static str,
    /// Texts that would be right.
    examples: [&'static str; 2],
    /// The units, as they are listed to people.
    listed: &'static str,
    /// The unit of the example of a text that has a number only.
    usual: &'static str,
    /// The units, and how much each is.
    units: &'static [(&'static str, u64)],
    /// What a number is that is beyond all bounds.
    excess: &'static str,
}

/// Durations, in microseconds.
const DURATION: Quantity = Quantity {
    name: "duration",
    examples: ["30s", "500ms"],
    listed: "us, ms, s, min, h or d",
    usual: "s",
    units: &[
        ("us", 1),
        ("ms", 1_000),
        ("s", 1_000_000),
        ("min", 60_000_000),
        ("h", 3_600_000_000),
        ("d", 86_400_000_000),
    ],
    excess: "long",
};

/// Sizes, in bytes.
const SIZE: Quantity = Quantity {
    name: "size",
    examples: ["16GB", "64MB"],
    listed: "B, kB, MB, GB or TB",
    usual: "MB",
    units: &[
        ("B", 1),
        ("kB", 1 << 10),
        ("MB", 1 << 20),
        ("GB", 1 << 30),
        ("TB", 1 << 40),
    ],
    excess: "large",
};

/// Reads a whole number with a unit (`us`, `ms`, `s`, `min`, `h`, `d`), with or without a space between them.
///
/// # Errors
/// A sentence that says what is wrong and what would be right.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    DURATION.parse(text).map(Duration::from_micros)
}

/// Reads a whole number with a unit (`B`, `kB`, `MB`, `GB`, `TB`; steps of 1024), with or without a space between them.
///
/// # Errors
/// A sentence that says what is wrong and what would be right.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    SIZE.parse(text)
}

impl Quantity {
    fn parse(&self, text: &str) -> Result<u64, String> {
        let text = text.trim();
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim_start();
        if number.is_empty() {
            let [one, other] = self.examples;
            return Err(format!(
                "a {} begins with a whole number, such as `{one}` or `{other}`",
                self.name
            ));
        }
        let Some((_, each)) = self.units.iter().find(|(name, _)| *name == unit) else {
            let what = if unit.is_empty() {
                "the unit is missing".to_owned()
            } else {
                format!("unknown unit `{unit}`")
            };
            return Err(format!(
                "{what}; write {}, such as `{number}{}`",
                self.listed, self.usual
            ));
        };
        let total = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(*each));
        total.ok_or_else(|| format!("{number}{unit} is too {}", self.excess))
    }
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

    #[test]
    fn sizes_are_read_with_postgresql_s_units() {
        assert_eq!(parse_size("16GB"), Ok(16 << 30));
        assert_eq!(parse_size(" 64 MB "), Ok(64 << 20));
        assert_eq!(parse_size("8kB"), Ok(8192));
        assert_eq!(parse_size("0B"), Ok(0));
    }

    #[test]
    fn what_is_no_size_says_what_would_be() {
        assert!(parse_size("").unwrap_err().contains("whole number"));
        assert!(parse_size("64").unwrap_err().contains("`64MB`"));
        assert!(
            parse_size("64mb")
                .unwrap_err()
                .contains("unknown unit `mb`")
        );
        assert!(
            parse_size("99999999999999999TB")
                .unwrap_err()
                .contains("too large")
        );
    }
}
