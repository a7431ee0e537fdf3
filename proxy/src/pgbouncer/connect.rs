//! Owns connection strings: `host=a port=1 password='x y'`.

/// The pairs of a connection string, in order; `None` when it is not one.
pub(super) fn pairs(text: &str) -> Option<Vec<(&str, String)>> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, behind) = rest.split_once('=')?;
        let key = key.trim_end();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return None;
        }
        let behind = behind.trim_start();
        let value;
        (value, rest) = match behind.strip_prefix('\'') {
            Some(quoted) => quoted_value(quoted)?,
            None => {
                let end = behind.find(char::is_whitespace).unwrap_or(behind.len());
                let (value, rest) = behind.split_at(end);
                (value.to_owned(), rest)
            }
        };
        pairs.push((key, value));
        rest = rest.trim_start();
    }
    Some(pairs)
}

/// A value behind its opening quote, and what follows it. A quote in it is doubled.
fn quoted_value(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let (part, behind) = rest.split_once('\'')?;
        value.push_str(part);
        match behind.strip_prefix('\'') {
            Some(further) => {
                value.push('\'');
                rest = further;
            }
            None => return Some((value, behind)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_taken_apart() {
        let of = |text| {
            pairs(text).map(|pairs| {
                let pairs = pairs
                    .into_iter()
                    .map(|(key, value)| format!("{key}:{value}"));
                pairs.collect::<Vec<_>>().join(" ")
            })
        };
        assert_eq!(of("").as_deref(), Some(""));
        assert_eq!(
            of("host=a port = 5432").as_deref(),
            Some("host:a port:5432")
        );
        assert_eq!(
            of("connect_query='SELECT ''x'''  dbname='a b'").as_deref(),
            Some("connect_query:SELECT 'x' dbname:a b")
        );
        assert_eq!(of("host").as_deref(), None);
        assert_eq!(of("a b=c").as_deref(), None);
        assert_eq!(of("a='b").as_deref(), None);
    }
}
