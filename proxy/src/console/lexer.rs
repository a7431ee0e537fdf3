//! Owns how a text is taken apart into statements and words. Pure.

use tandem_wire::ErrorReport;

/// A word. What stands in single quotes belongs to the word it touches, so `name='a b'` is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    /// Its text. Single quotes are taken off, double quotes stay: names with dots need them.
    pub(super) text: String,
    /// Whether a part of it stood in single quotes.
    pub(super) quoted: bool,
}

impl Token {
    /// Whether it is this keyword, which is given in capitals.
    pub(super) fn is(&self, keyword: &str) -> bool {
        !self.quoted && self.text.eq_ignore_ascii_case(keyword)
    }

    /// The keyword that it could be; empty for what was quoted.
    pub(super) fn keyword(&self) -> String {
        match self.quoted {
            true => String::new(),
            false => self.text.to_ascii_uppercase(),
        }
    }

    /// The name that it is: without double quotes around it.
    pub(super) fn name(&self) -> String {
        let inner = self
            .text
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'))
            .filter(|_| !self.quoted);
        match inner {
            Some(inner) => inner.replace("\"\"", "\""),
            None => self.text.clone(),
        }
    }
}

/// The statements of a text, each of at least one word.
pub(super) fn statements(text: &str) -> Result<Vec<Vec<Token>>, ErrorReport> {
    let mut statements = Vec::new();
    let mut words = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if c.is_whitespace() {
            rest = rest.trim_start();
        } else if rest.starts_with("--") {
            rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
        } else if rest.starts_with("/*") {
            rest = after_comment(rest)?;
        } else if let Some(behind) = rest.strip_prefix(';') {
            statements.push(std::mem::take(&mut words));
            rest = behind;
        } else if let Some(behind) = rest.strip_prefix(',') {
            words.push(Token {
                text: ",".to_owned(),
                quoted: false,
            });
            rest = behind;
        } else {
            let (token, behind) = word(rest)?;
            words.push(token);
            rest = behind;
        }
    }
    statements.push(words);
    statements.retain(|words| !words.is_empty());
    Ok(statements)
}

/// One word, and what follows it.
fn word(text: &str) -> Result<(Token, &str), ErrorReport> {
    let mut token = Token {
        text: String::new(),
        quoted: false,
    };
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if c.is_whitespace() || matches!(c, ';' | ',') || rest.starts_with("/*") {
            break;
        }
        if c == '\'' || c == '"' {
            let (inner, behind) = quoted(rest, c)?;
            if c == '\'' {
                token.text.push_str(&inner.replace("''", "'"));
                token.quoted = true;
            } else {
                token
                    .text
                    .push_str(rest.get(..inner.len() + 2).unwrap_or_default());
            }
            rest = behind;
        } else {
            token.text.push(c);
            rest = rest.get(c.len_utf8()..).unwrap_or_default();
        }
    }
    Ok((token, rest))
}

/// What stands between the quotes at the beginning, doubled ones as they are, and what follows.
fn quoted(text: &str, quote: char) -> Result<(&str, &str), ErrorReport> {
    let inner = text.get(1..).unwrap_or_default();
    let mut from = 0;
    loop {
        let at = inner
            .get(from..)
            .and_then(|rest| rest.find(quote))
            .map(|at| from + at)
            .ok_or_else(|| ErrorReport::error("42601", format!("unterminated {quote}")))?;
        let behind = inner.get(at + 1..).unwrap_or_default();
        if !behind.starts_with(quote) {
            return Ok((inner.get(..at).unwrap_or_default(), behind));
        }
        from = at + 2;
    }
}

/// What follows the comment at the beginning. Comments nest.
fn after_comment(text: &str) -> Result<&str, ErrorReport> {
    let mut depth = 0_usize;
    let mut rest = text;
    loop {
        if let Some(behind) = rest.strip_prefix("/*") {
            depth += 1;
            rest = behind;
        } else if let Some(behind) = rest.strip_prefix("*/") {
            depth -= 1;
            rest = behind;
            if depth == 0 {
                return Ok(rest);
            }
        } else {
            let mut chars = rest.chars();
            if chars.next().is_none() {
                return Err(ErrorReport::error("42601", "unterminated /* comment"));
            }
            rest = chars.as_str();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<Vec<String>> {
        let statements = statements(text).expect(text);
        let texts = statements
            .into_iter()
            .map(|words| words.into_iter().map(|token| token.text).collect());
        texts.collect()
    }

    #[test]
    fn a_text_falls_into_statements_and_words() {
        assert_eq!(
            words(" show  pools ;; -- no\n SHOW/* a /* b */ c */lists;"),
            [["show", "pools"], ["SHOW", "lists"]]
        );
        assert_eq!(
            words("SHOW ROUTE 'a;b -- ''c'' /*'"),
            [["SHOW", "ROUTE", "a;b -- 'c' /*"]]
        );
        assert_eq!(
            words("set a.\"b c\".d='x, y',e=1"),
            [["set", "a.\"b c\".d=x, y", ",", "e=1"]]
        );
        assert!(words(" ; -- only a comment").is_empty());
        assert_eq!(words("é'ü'ö"), [["éüö"]]);
    }

    #[test]
    fn what_does_not_end_is_refused() {
        for text in ["'a", "\"a", "x='a''", "/* /* */", "'"] {
            let error = statements(text).expect_err(text);
            assert!(error.message.contains("unterminated"), "{text}: {error:?}");
        }
    }

    #[test]
    fn quotes_decide_what_is_a_keyword_and_what_a_name() {
        let of = |text: &str| statements(text).expect("fine").remove(0).remove(0);
        assert!(of("Show").is("SHOW") && !of("'SHOW'").is("SHOW") && !of("\"SHOW\"").is("SHOW"));
        assert_eq!(of("\"a\"\"b\"").name(), "a\"b");
        assert_eq!(of("'\"x\"'").name(), "\"x\"");
    }

    #[test]
    fn no_text_makes_the_lexer_panic() {
        let mut random = fastrand::Rng::with_seed(606);
        let pieces = [
            "'", "\"", "/*", "*/", "--", "\n", ";", ",", "é", "a", "=", " ", "''",
        ];
        for _ in 0..3000 {
            let text: String = (0..random.usize(..20))
                .map(|_| pieces[random.usize(..pieces.len())])
                .collect();
            let _ = statements(&text);
        }
    }
}
