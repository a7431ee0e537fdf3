//! Hiding passwords in the text of a configuration before any of it is shown.

/// The key whose value is a secret. `password_file` and `password_env` only say where one is.
const SECRET_KEY: &str = "password";

/// The same text with every value of a `password` key replaced by asterisks, byte for byte, so that spans still fit.
///
/// It goes by the letters, not by the TOML tree, because a file that does not parse is shown as well.
pub(super) fn masked(source: &str) -> String {
    let mut shown = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(found) = rest.find(SECRET_KEY) {
        let (before, from_key) = rest.split_at(found);
        let (key, after_key) = from_key.split_at(SECRET_KEY.len());
        shown.push_str(before);
        shown.push_str(key);
        rest = after_key;
        let is_whole_word = !shown
            .trim_end_matches(SECRET_KEY)
            .ends_with(is_key_character);
        let value_at = value_offset(after_key).filter(|_| is_whole_word);
        if let Some(offset) = value_at {
            let (between, value) = after_key.split_at(offset);
            let length = value_length(value);
            shown.push_str(between);
            shown.extend(
                value
                    .get(..length)
                    .unwrap_or(value)
                    .bytes()
                    .map(|byte| if byte == b'\n' { '\n' } else { '*' }),
            );
            rest = value.get(length..).unwrap_or("");
        }
    }
    shown.push_str(rest);
    shown
}

fn is_key_character(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '-'
}

/// Where the value begins behind the key, if an `=` follows.
fn value_offset(after_key: &str) -> Option<usize> {
    let unquoted = after_key.strip_prefix(['"', '\'']).unwrap_or(after_key);
    let behind_equals = unquoted.trim_start_matches([' ', '\t']).strip_prefix('=')?;
    Some(after_key.len() - behind_equals.trim_start_matches([' ', '\t']).len())
}

/// Length in bytes of the value, quotes included. An unfinished string reaches to the end of its line, or of the file.
fn value_length(value: &str) -> usize {
    for quote in ["\"\"\"", "'''"] {
        if let Some(inner) = value.strip_prefix(quote) {
            return inner
                .find(quote)
                .map_or(value.len(), |end| quote.len() + end + quote.len());
        }
    }
    let line_end = value.find('\n').unwrap_or(value.len());
    let line = value.get(..line_end).unwrap_or(value);
    let Some(quote) = line.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
        return line.find([',', '}', '#']).unwrap_or(line_end);
    };
    let mut escaped = false;
    for (at, character) in line.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' if quote == '"' => escaped = true,
            _ if character == quote => return at + 1,
            _ => {}
        }
    }
    line_end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_password_keys_are_hidden_and_nothing_moves() {
        let table = [
            (
                "password = \"geheim\"\nport = 1\n",
                "password = ********\nport = 1\n",
            ),
            ("password='a\"b' # x", "password=***** # x"),
            (
                "{ name = \"a\", password = \"x\\\"y\", port = 1 }",
                "{ name = \"a\", password = ******, port = 1 }",
            ),
            ("\"password\" = 4711\n", "\"password\" = ****\n"),
            ("password = \"\"\"a\nb\"\"\"\nx", "password = ****\n****\nx"),
            ("password = \"open\nport = 1", "password = *****\nport = 1"),
            ("password_file = \"p\"", "password_file = \"p\""),
            ("my_password = \"p\"", "my_password = \"p\""),
            ("# a password is needed", "# a password is needed"),
            ("node.password = \"é\"", "node.password = ****"),
            ("password =", "password ="),
        ];
        for (source, wanted) in table {
            let shown = masked(source);
            assert_eq!(shown, wanted);
            assert_eq!(shown.len(), source.len());
        }
    }
}
