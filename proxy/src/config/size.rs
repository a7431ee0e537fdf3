//! Sizes as text: `64MB`, `16GB`, with the units of PostgreSQL's settings.

/// Units and their size in bytes.
const UNITS: [(&str, u64); 5] = [
    ("B", 1),
    ("kB", 1 << 10),
    ("MB", 1 << 20),
    ("GB", 1 << 30),
    ("TB", 1 << 40),
];

/// Reads a whole number with a unit (`B`, `kB`, `MB`, `GB`, `TB`; steps of 1024), with or without a space between them.
///
/// # Errors
/// A sentence that says what is wrong and what would be right.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    if number.is_empty() {
        return Err("a size begins with a whole number, such as `16GB` or `64MB`".to_owned());
    }
    let Some((_, bytes)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        let what = if unit.is_empty() {
            "the unit is missing".to_owned()
        } else {
            format!("unknown unit `{unit}`")
        };
        return Err(format!(
            "{what}; write B, kB, MB, GB or TB, such as `{number}MB`"
        ));
    };
    let total = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(*bytes));
    total.ok_or_else(|| format!("{number}{unit} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
