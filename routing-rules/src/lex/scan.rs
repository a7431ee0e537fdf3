//! Owns where a token ends: one function per form, each from the token's first byte.

use super::{Kind, LexError};

/// Names and operators have fewer bytes than this (`NAMEDATALEN`).
pub(super) const NAME_LIMIT: usize = 64;

/// A token's kind and where it ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) kind: Kind,
    pub(super) end: usize,
}

fn found(kind: Kind, end: usize) -> Found {
    Found { kind, end }
}

fn at(text: &[u8], position: usize) -> Option<u8> {
    text.get(position).copied()
}

fn starts_with(text: &[u8], position: usize, prefix: &[u8]) -> bool {
    text.get(position..)
        .is_some_and(|rest| rest.starts_with(prefix))
}

/// The first position from `start` on whose byte is not such.
pub(super) fn while_true(text: &[u8], start: usize, is: impl Fn(u8) -> bool) -> usize {
    let rest = text.get(start..).unwrap_or_default();
    let length = rest.iter().position(|&byte| !is(byte));
    length.map_or(text.len(), |length| start + length)
}

pub(super) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

fn is_newline(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

fn is_name_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_name(byte: u8) -> bool {
    is_name_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

fn is_operator(byte: u8) -> bool {
    matches!(
        byte,
        b'~' | b'!'
            | b'@'
            | b'#'
            | b'^'
            | b'&'
            | b'|'
            | b'`'
            | b'?'
            | b'+'
            | b'-'
            | b'*'
            | b'/'
            | b'%'
            | b'<'
            | b'>'
            | b'='
    )
}

fn is_comment_start(text: &[u8], position: usize) -> bool {
    starts_with(text, position, b"--") || starts_with(text, position, b"/*")
}

/// The token that begins at `start`, which is no white space. `signs_end` is what [`operator`] remembers between tokens.
pub(super) fn token(
    text: &[u8],
    start: usize,
    standard_conforming_strings: bool,
    signs_end: &mut usize,
) -> Option<Found> {
    let first = at(text, start)?;
    Some(match first {
        b'\'' if standard_conforming_strings => string(text, start + 1, Kind::String),
        b'\'' => string(text, start + 1, Kind::EscapeString),
        b'"' => identifier_in_quotes(text, start + 1, Kind::QuotedIdentifier),
        b'$' => dollar(text, start),
        b'0'..=b'9' => number(text, start),
        b'.' if at(text, start + 1).is_some_and(|byte| byte.is_ascii_digit()) => {
            number(text, start)
        }
        b'.' if at(text, start + 1) == Some(b'.') => found(Kind::Punctuation, start + 2),
        b':' if matches!(at(text, start + 1), Some(b':' | b'=')) => {
            found(Kind::Punctuation, start + 2)
        }
        b',' | b'(' | b')' | b'[' | b']' | b'.' | b';' | b':' => {
            found(Kind::Punctuation, start + 1)
        }
        _ if starts_with(text, start, b"--") => {
            let end = while_true(text, start, |byte| !is_newline(byte));
            found(Kind::LineComment, end)
        }
        _ if starts_with(text, start, b"/*") => block_comment(text, start + 2),
        _ if is_operator(first) => operator(text, start, signs_end),
        _ if is_name_start(first) => prefixed(text, start, first, standard_conforming_strings)
            .unwrap_or_else(|| found(Kind::Identifier, while_true(text, start, is_name))),
        _ => found(Kind::Other, start + 1),
    })
}

/// What begins with a letter and a quote.
fn prefixed(
    text: &[u8],
    start: usize,
    first: u8,
    standard_conforming_strings: bool,
) -> Option<Found> {
    let second = at(text, start + 1)?;
    let third = at(text, start + 2);
    match (first.to_ascii_lowercase(), second, third) {
        (b'e', b'\'', _) => Some(string(text, start + 2, Kind::EscapeString)),
        (b'b', b'\'', _) => Some(string(text, start + 2, Kind::BitString)),
        (b'x', b'\'', _) => Some(string(text, start + 2, Kind::HexString)),
        (b'u', b'&', Some(b'\'')) if standard_conforming_strings => {
            Some(string(text, start + 3, Kind::UnicodeString))
        }
        (b'u', b'&', Some(b'\'')) => Some(found(
            Kind::Error(LexError::UnsafeUnicodeString),
            text.len(),
        )),
        (b'u', b'&', Some(b'"')) => Some(identifier_in_quotes(
            text,
            start + 3,
            Kind::UnicodeIdentifier,
        )),
        _ => None,
    }
}

/// A string whose first character is at `position`.
fn string(text: &[u8], mut position: usize, kind: Kind) -> Found {
    let bits = matches!(kind, Kind::BitString | Kind::HexString);
    loop {
        position = while_true(text, position, |byte| byte != b'\'' && byte != b'\\');
        match at(text, position) {
            None if bits => return found(Kind::Error(LexError::UnterminatedBitString), text.len()),
            None => return found(Kind::Error(LexError::UnterminatedString), text.len()),
            // The longer escapes go on with characters that end no string.
            Some(b'\\') if kind == Kind::EscapeString => position += 2,
            Some(b'\\') => position += 1,
            Some(_) if !bits && at(text, position + 1) == Some(b'\'') => position += 2,
            Some(_) => match continuation(text, position + 1) {
                Some(next) => position = next,
                None => return found(kind, position + 1),
            },
        }
    }
}

/// Where a string goes on whose quote ends at `position`: behind another quote on a later line, with nothing but white
/// space and line comments between.
pub(super) fn continuation(text: &[u8], mut position: usize) -> Option<usize> {
    let mut newline = false;
    loop {
        match at(text, position)? {
            b'\'' => return newline.then_some(position + 1),
            byte if is_space(byte) => {
                newline |= is_newline(byte);
                position += 1;
            }
            _ if starts_with(text, position, b"--") => {
                position = while_true(text, position, |byte| !is_newline(byte));
            }
            _ => return None,
        }
    }
}

/// A quoted name whose first character is at `start`.
fn identifier_in_quotes(text: &[u8], start: usize, kind: Kind) -> Found {
    let mut position = start;
    loop {
        position = while_true(text, position, |byte| byte != b'"');
        if position >= text.len() {
            return found(Kind::Error(LexError::UnterminatedIdentifier), text.len());
        }
        if at(text, position + 1) != Some(b'"') {
            break;
        }
        position += 2;
    }
    if position == start {
        return found(Kind::Error(LexError::EmptyIdentifier), position + 1);
    }
    found(kind, position + 1)
}

/// A parameter, a string in dollar quotes, or a lone `$`.
fn dollar(text: &[u8], start: usize) -> Found {
    let digits = while_true(text, start + 1, |byte| byte.is_ascii_digit());
    if digits > start + 1 {
        return match at(text, digits) {
            Some(byte) if is_name_start(byte) => found(
                Kind::Error(LexError::ParameterJunk),
                while_true(text, digits, is_name),
            ),
            _ => found(Kind::Parameter, digits),
        };
    }
    let Some(open) = dollar_tag(text, start) else {
        return found(Kind::Other, start + 1);
    };
    let tag = text.get(start..open).unwrap_or_default();
    // A tag contains no further dollar, so no byte is compared twice.
    let mut position = open;
    loop {
        position = while_true(text, position, |byte| byte != b'$');
        if position >= text.len() {
            return found(Kind::Error(LexError::UnterminatedDollarString), text.len());
        }
        if starts_with(text, position, tag) {
            return found(Kind::DollarString, position + tag.len());
        }
        position += 1;
    }
}

/// The end of the `$tag$` that begins at `start`.
pub(super) fn dollar_tag(text: &[u8], start: usize) -> Option<usize> {
    let end = match at(text, start + 1) {
        Some(byte) if is_name_start(byte) => {
            while_true(text, start + 1, |byte| is_name(byte) && byte != b'$')
        }
        _ => start + 1,
    };
    (at(text, end) == Some(b'$')).then_some(end + 1)
}

/// The end of digits with single underscores between them.
fn digits(text: &[u8], start: usize, is: impl Fn(u8) -> bool) -> usize {
    let mut end = start;
    loop {
        let from = match at(text, end) {
            Some(b'_') if end > start => end + 1,
            _ => end,
        };
        match at(text, from) {
            Some(byte) if is(byte) => end = from + 1,
            _ => return end,
        }
    }
}

fn number(text: &[u8], start: usize) -> Found {
    let is_digit = |byte: u8| byte.is_ascii_digit();
    if at(text, start) == Some(b'0') {
        let is_of_base: Option<fn(u8) -> bool> = match at(text, start + 1) {
            Some(b'x' | b'X') => Some(|byte| byte.is_ascii_hexdigit()),
            Some(b'o' | b'O') => Some(|byte| (b'0'..=b'7').contains(&byte)),
            Some(b'b' | b'B') => Some(|byte| matches!(byte, b'0' | b'1')),
            _ => None,
        };
        if let Some(is_of_base) = is_of_base {
            return based_integer(text, start + 2, is_of_base);
        }
    }
    let mut end = digits(text, start, is_digit);
    let mut kind = Kind::Integer;
    if at(text, end) == Some(b'.') {
        // `1..10` is a range.
        if at(text, end + 1) == Some(b'.') {
            return found(Kind::Integer, end);
        }
        kind = Kind::Numeric;
        end = digits(text, end + 1, is_digit);
    }
    if matches!(at(text, end), Some(b'e' | b'E')) {
        let signed = matches!(at(text, end + 1), Some(b'+' | b'-'));
        let from = end + 1 + usize::from(signed);
        let exponent = digits(text, from, is_digit);
        // `1e5$` is a number with a name behind it.
        let word = while_true(text, end, is_name);
        if word > exponent || exponent == from {
            let error = Kind::Error(LexError::NumberJunk);
            return found(error, word.max(from));
        }
        kind = Kind::Numeric;
        end = exponent;
    }
    match at(text, end) {
        Some(byte) if is_name_start(byte) => found(
            Kind::Error(LexError::NumberJunk),
            while_true(text, end, is_name),
        ),
        _ => found(kind, end),
    }
}

/// An integer whose `0x`, `0o` or `0b` ends at `start`.
fn based_integer(text: &[u8], start: usize, is: impl Fn(u8) -> bool) -> Found {
    // The first digit may have an underscore before it.
    let first = start + usize::from(at(text, start) == Some(b'_'));
    let end = digits(text, first, is);
    let word = while_true(text, start, is_name);
    if end == first || word > end {
        return found(Kind::Error(LexError::NumberJunk), word);
    }
    found(Kind::Integer, end)
}

/// A comment may contain others.
fn block_comment(text: &[u8], mut position: usize) -> Found {
    let mut depth = 1_usize;
    while depth > 0 {
        position = while_true(text, position, |byte| byte != b'/' && byte != b'*');
        if position >= text.len() {
            return found(Kind::Error(LexError::UnterminatedComment), text.len());
        }
        if starts_with(text, position, b"/*") {
            depth += 1;
            position += 2;
        } else if starts_with(text, position, b"*/") {
            depth -= 1;
            position += 2;
        } else {
            position += 1;
        }
    }
    found(Kind::BlockComment, position)
}

/// An operator ends where a comment begins. One of several characters ends with `+` or `-` only if it contains a
/// character that the operators of the SQL standard do not have: `=-1` is `=` and `-`, but `@-` is one operator.
///
/// The signs that are taken away from an operator's end are then tokens of one character each; `signs_end` says up to
/// where, so that a long row of them is not looked at once for each.
pub(super) fn operator(text: &[u8], start: usize, signs_end: &mut usize) -> Found {
    if start < *signs_end {
        return found(Kind::Operator, start + 1);
    }
    let mut end = start + 1;
    while at(text, end).is_some_and(is_operator) && !is_comment_start(text, end) {
        end += 1;
    }
    let is_sign = |byte: u8| matches!(byte, b'+' | b'-');
    let run = text.get(start..end).unwrap_or_default();
    let may_end_with_sign = run
        .split_last()
        .is_some_and(|(_, before)| before.iter().any(|byte| b"~!@#^&|`?%".contains(byte)));
    if run.last().copied().is_some_and(is_sign) && !may_end_with_sign {
        *signs_end = end;
        let kept = run.iter().rposition(|&byte| !is_sign(byte));
        end = start + kept.map_or(1, |last| last + 1);
    }
    if end - start >= NAME_LIMIT {
        return found(Kind::Error(LexError::OperatorTooLong), end);
    }
    found(Kind::Operator, end)
}
