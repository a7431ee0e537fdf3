//! Where in a statement the value of a key stands, and how it is read.

use crate::lex::{self, Kind, Lexer};
use crate::placement::Key;

/// Where a value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// A literal, with the signs before it; in bytes from the beginning of the text.
    Literal(usize),
    /// The same, an array's text: each of its elements.
    ArrayLiteral(usize),
    /// A parameter, counted from 1.
    Parameter(u16),
    /// The same, an array: each of its elements.
    ArrayParameter(u16),
    /// TRUE or FALSE.
    Boolean(bool),
}

/// The values of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Values {
    /// These and no others.
    Of(Vec<Source>),
    /// Something that only the server can tell: a default, an expression, NULL.
    Unknown,
}

/// The value of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parameter<'v> {
    /// Nothing is known of it.
    Unknown,
    /// Its text.
    Text(&'v str),
}

impl Values {
    /// The keys, or `None` where one of them cannot be told. `parameter` answers for parameters by number.
    pub fn keys<'v>(
        &self,
        text: &str,
        parameter: impl Fn(u16) -> Parameter<'v>,
    ) -> Option<Vec<Key>> {
        let Self::Of(sources) = self else {
            return None;
        };
        let mut keys = Vec::new();
        for source in sources {
            match source {
                Source::Boolean(value) => keys.push(Key::Text(value.to_string())),
                Source::Literal(start) => keys.push(literal(text, *start)?),
                Source::ArrayLiteral(start) => elements(&string(text, *start)?, &mut keys)?,
                Source::Parameter(number) => match parameter(*number) {
                    Parameter::Text(value) => keys.push(Key::from_text(value)),
                    Parameter::Unknown => return None,
                },
                Source::ArrayParameter(number) => match parameter(*number) {
                    Parameter::Text(value) => elements(value, &mut keys)?,
                    Parameter::Unknown => return None,
                },
            }
        }
        (!keys.is_empty()).then_some(keys)
    }
}

/// The key that a literal is: an integer, or a string. Other numbers are none: whether `5.0` is 5 depends on the column.
fn literal(text: &str, start: usize) -> Option<Key> {
    let mut negative = false;
    for token in Lexer::new(text.as_bytes().get(start..)?, true).significant() {
        if token.is_sign("-") {
            negative = !negative;
        } else if token.kind == Kind::Integer {
            let digits = core::str::from_utf8(token.text).ok()?;
            let sign = if negative { "-" } else { "" };
            let key = Key::from_text(&format!("{sign}{digits}"));
            return matches!(key, Key::Integer(_)).then_some(key);
        } else if !token.is_sign("+") {
            return string(text, start)
                .filter(|_| !negative)
                .map(|text| Key::from_text(&text));
        }
    }
    None
}

/// The value of a string literal.
fn string(text: &str, start: usize) -> Option<String> {
    let token = Lexer::new(text.as_bytes().get(start..)?, true).next()?;
    let is_string = matches!(
        token.kind,
        Kind::String | Kind::EscapeString | Kind::DollarString
    );
    let value = is_string.then(|| lex::value(&token))?.ok()?;
    String::from_utf8(value.into_owned()).ok()
}

/// The elements of a one-dimensional array in PostgreSQL's text form; none of them may be NULL.
fn elements(text: &str, keys: &mut Vec<Key>) -> Option<()> {
    let inside = text.trim().strip_prefix('{')?.strip_suffix('}')?;
    let mut chars = inside.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        let mut element = String::new();
        let quoted = chars.next_if_eq(&'"').is_some();
        if quoted {
            loop {
                match chars.next()? {
                    '"' => break,
                    '\\' => element.push(chars.next()?),
                    c => element.push(c),
                }
            }
            while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        } else {
            while let Some(c) = chars.next_if(|c| *c != ',') {
                match c {
                    '{' | '}' | '"' => return None,
                    '\\' => element.push(chars.next()?),
                    c => element.push(c),
                }
            }
            element.truncate(element.trim_end().len());
            if element.is_empty() || element.eq_ignore_ascii_case("null") {
                return None;
            }
        }
        keys.push(Key::from_text(&element));
        match chars.next() {
            None => return Some(()),
            Some(',') => {}
            Some(_) => return None,
        }
    }
}
