//! Owns what a name or a string literal means: its quotes, escapes and continuations taken away.

use std::borrow::Cow;

use super::{
    Kind, Token,
    scan::{NAME_LIMIT, continuation, dollar_tag, while_true},
};

/// Why a literal's value is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// The server refuses it.
    #[error("invalid Unicode escape")]
    InvalidEscape,
    /// `\v` is a vertical tab from PostgreSQL 16 on, and a `v` before.
    #[error(r"\v does not mean the same on all major versions")]
    VersionDependent,
}

/// What a name or string means; the text of any other token. Escapes by code point give UTF-8, whatever the server's
/// encoding; others can give bytes that the server refuses for being none of its encoding. `U&` strings are read with the
/// usual escape character, see [`unicode_value`].
///
/// # Errors
/// An escape by code point is malformed, or half a surrogate pair; or an escape that not all servers know.
pub fn value<'t>(token: &Token<'t>) -> Result<Cow<'t, [u8]>, ValueError> {
    unicode_value(token, b'\\')
}

/// As [`value`], where `UESCAPE` names the escape character of a `U&` string or name.
///
/// # Errors
/// As [`value`].
pub fn unicode_value<'t>(token: &Token<'t>, escape: u8) -> Result<Cow<'t, [u8]>, ValueError> {
    let text = token.text;
    Ok(match token.kind {
        Kind::Identifier if text.iter().any(u8::is_ascii_uppercase) => {
            truncated(Cow::Owned(text.to_ascii_lowercase()))
        }
        Kind::Identifier => truncated(Cow::Borrowed(text)),
        Kind::QuotedIdentifier => truncated(undoubled(text, 1)),
        Kind::UnicodeIdentifier => truncated(unescaped_unicode(undoubled(text, 3), escape)?),
        Kind::String => undoubled(text, 1),
        Kind::EscapeString => {
            let prefix = 1 + usize::from(text.first() != Some(&b'\''));
            unescaped(text, prefix)?
        }
        Kind::UnicodeString => unescaped_unicode(undoubled(text, 3), escape)?,
        Kind::DollarString => {
            let tag = dollar_tag(text, 0).unwrap_or_default();
            Cow::Borrowed(
                text.get(tag..text.len().saturating_sub(tag))
                    .unwrap_or_default(),
            )
        }
        _ => Cow::Borrowed(text),
    })
}

/// A longer name is cut, at a character of UTF-8.
fn truncated(name: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    if name.len() < NAME_LIMIT {
        return name;
    }
    let is_continued = |byte: &u8| byte & 0xc0 == 0x80;
    let mut end = NAME_LIMIT - 1;
    while end > 0 && name.get(end).is_some_and(is_continued) {
        end -= 1;
    }
    match name {
        Cow::Borrowed(name) => Cow::Borrowed(name.get(..end).unwrap_or_default()),
        Cow::Owned(mut name) => {
            name.truncate(end);
            Cow::Owned(name)
        }
    }
}

/// The content of a text in quotes of either sort, whose content begins at `start`: a doubled quote is one, and what
/// follows on a later line is joined.
fn undoubled(text: &[u8], start: usize) -> Cow<'_, [u8]> {
    let quote = text.last().copied().unwrap_or_default();
    let inner = text
        .get(start..text.len().saturating_sub(1))
        .unwrap_or_default();
    if !inner.contains(&quote) {
        return Cow::Borrowed(inner);
    }
    let mut content = Vec::with_capacity(inner.len());
    let mut position = start;
    loop {
        let end = while_true(text, position, |byte| byte != quote);
        content.extend_from_slice(text.get(position..end).unwrap_or_default());
        match after_quote(text, end, &mut content) {
            Some(next) => position = next,
            None => return Cow::Owned(content),
        }
    }
}

/// Where the content goes on behind the quote at `quote`, and what that quote adds to it.
fn after_quote(text: &[u8], quote: usize, content: &mut Vec<u8>) -> Option<usize> {
    let next = text.get(quote + 1)?;
    if Some(next) == text.get(quote) {
        content.push(*next);
        return Some(quote + 2);
    }
    continuation(text, quote + 1)
}

/// The content of an escape string.
fn unescaped(text: &[u8], start: usize) -> Result<Cow<'_, [u8]>, ValueError> {
    let inner = text
        .get(start..text.len().saturating_sub(1))
        .unwrap_or_default();
    if !inner.contains(&b'\'') && !inner.contains(&b'\\') {
        return Ok(Cow::Borrowed(inner));
    }
    let mut content = Vec::with_capacity(inner.len());
    let mut position = start;
    loop {
        let end = while_true(text, position, |byte| byte != b'\'' && byte != b'\\');
        content.extend_from_slice(text.get(position..end).unwrap_or_default());
        if text.get(end) == Some(&b'\\') {
            position = escape(text, end + 1, &mut content)?;
            continue;
        }
        match after_quote(text, end, &mut content) {
            Some(next) => position = next,
            None => return Ok(Cow::Owned(content)),
        }
    }
}

/// Takes the escape whose backslash ends at `position`; where the text goes on.
fn escape(text: &[u8], position: usize, content: &mut Vec<u8>) -> Result<usize, ValueError> {
    let Some(&byte) = text.get(position) else {
        return Ok(position);
    };
    let plain = match byte {
        b'b' => 0x08,
        b'f' => 0x0c,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'v' => return Err(ValueError::VersionDependent),
        b'0'..=b'7' => {
            let (value, end) = radix(text, position, 3, 8);
            // `\777` is one byte too.
            content.push(value.to_le_bytes()[0]);
            return Ok(end);
        }
        b'x' => {
            let (value, end) = radix(text, position + 1, 2, 16);
            if end > position + 1 {
                content.push(value.to_le_bytes()[0]);
                return Ok(end);
            }
            byte
        }
        b'u' | b'U' => {
            let length = |byte: u8| if byte == b'u' { 4 } else { 8 };
            let (first, end) = exactly(text, position + 1, length(byte))?;
            if !is_first_surrogate(first) {
                push(content, first)?;
                return Ok(end);
            }
            let (Some(b'\\'), Some(&next @ (b'u' | b'U'))) = (text.get(end), text.get(end + 1))
            else {
                return Err(ValueError::InvalidEscape);
            };
            let (second, end) = exactly(text, end + 2, length(next))?;
            push(content, surrogate_pair(first, second)?)?;
            return Ok(end);
        }
        _ => byte,
    };
    content.push(plain);
    Ok(position + 1)
}

/// The value of a `U&` text whose quotes are taken away.
fn unescaped_unicode(text: Cow<'_, [u8]>, escape: u8) -> Result<Cow<'_, [u8]>, ValueError> {
    if !text.contains(&escape) {
        return Ok(text);
    }
    let mut content = Vec::with_capacity(text.len());
    let mut position = 0;
    while let Some(&byte) = text.get(position) {
        position += 1;
        if byte != escape {
            content.push(byte);
        } else if text.get(position) == Some(&escape) {
            content.push(escape);
            position += 1;
        } else {
            let (mut code, mut end) = code_point(&text, position)?;
            if is_first_surrogate(code) {
                if text.get(end) != Some(&escape) {
                    return Err(ValueError::InvalidEscape);
                }
                let (second, after) = code_point(&text, end + 1)?;
                code = surrogate_pair(code, second)?;
                end = after;
            }
            push(&mut content, code)?;
            position = end;
        }
    }
    Ok(Cow::Owned(content))
}

/// `XXXX` or `+XXXXXX`.
fn code_point(text: &[u8], position: usize) -> Result<(u32, usize), ValueError> {
    match text.get(position) {
        Some(b'+') => exactly(text, position + 1, 6),
        _ => exactly(text, position, 4),
    }
}

/// The number in so many hexadecimal digits.
fn exactly(text: &[u8], position: usize, length: usize) -> Result<(u32, usize), ValueError> {
    let (value, end) = radix(text, position, length, 16);
    if end != position + length {
        return Err(ValueError::InvalidEscape);
    }
    Ok((value, end))
}

/// The number in at most so many digits, at most eight, and where it ends.
fn radix(text: &[u8], start: usize, length_max: usize, radix: u32) -> (u32, usize) {
    let digits = text.get(start..).unwrap_or_default().iter();
    let digits = digits
        .take(length_max)
        .map_while(|&byte| char::from(byte).to_digit(radix));
    digits.fold((0, start), |(value, end), digit| {
        (value.wrapping_mul(radix).wrapping_add(digit), end + 1)
    })
}

fn is_first_surrogate(code: u32) -> bool {
    (0xd800..0xdc00).contains(&code)
}

fn surrogate_pair(first: u32, second: u32) -> Result<u32, ValueError> {
    if !(0xdc00..0xe000).contains(&second) {
        return Err(ValueError::InvalidEscape);
    }
    Ok(0x1_0000 + ((first & 0x3ff) << 10) + (second & 0x3ff))
}

fn push(content: &mut Vec<u8>, code: u32) -> Result<(), ValueError> {
    let character = char::from_u32(code).filter(|&character| character != '\0');
    let character = character.ok_or(ValueError::InvalidEscape)?;
    content.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    Ok(())
}
