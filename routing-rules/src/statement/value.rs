//! What a value is as a key: by the type of its column, whatever form it comes in.

use core::fmt::Write as _;
use std::borrow::Cow;

use super::source::{Origin, Source};
use crate::catalog::ColumnType;
use crate::lex::{self, Kind, Token};
use crate::placement::Key;
use crate::template::{Literal, Literals};

/// A parameter as Bind gives it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Parameter<'v> {
    /// Its bytes; `None`: NULL, or nothing is known of it.
    pub value: Option<&'v [u8]>,
    /// Whether they are in binary form.
    pub binary: bool,
    /// The OID of its type, as the client knows it; 0: the server is to find out.
    pub type_oid: u32,
}

/// `unknown`, the type of a literal that has none yet.
const UNKNOWN_OID: u32 = 705;
/// Days from the Common Era's beginning (0000-03-01) to 2000-01-01, which PostgreSQL's dates count from.
const DAYS_TO_2000: i64 = 730_425;

/// Adds the keys of a source, for a column of this type, to the others. `None`: one of them cannot be told.
pub(super) fn keys(
    source: &Source,
    column: Option<ColumnType>,
    literals: Literals<'_>,
    parameters: &[Parameter<'_>],
    found: &mut dyn FnMut(Key),
) -> Option<()> {
    let steps = [source.cast, column];
    match &source.origin {
        Origin::Constant(text) => of_text(text, source.array, [None, source.cast, column], found),
        Origin::Literal { place, negative } => {
            let mut any = false;
            for literal in literals.at(*place) {
                any = true;
                let text = literal_text(&literal, *negative)?;
                of_text(&text, source.array, [None, source.cast, column], found)?;
            }
            any.then_some(())
        }
        Origin::Parameter(number) => {
            let parameter = parameters.get(usize::from(*number).checked_sub(1)?)?;
            of_parameter(parameter, source.array, steps, found)
        }
    }
}

/// The text of a literal's value. Other numbers than integers have none: whether `5.0` is 5 depends on the column.
pub(super) fn literal_text<'t>(literal: &Literal<'t>, negative: bool) -> Option<Cow<'t, str>> {
    let token = Token {
        kind: literal.kind,
        start: literal.start,
        text: literal.text,
    };
    let value = match literal.kind {
        Kind::Integer => Cow::Borrowed(literal.text),
        Kind::String | Kind::EscapeString | Kind::DollarString if !negative => {
            lex::value(&token).ok()?
        }
        _ => return None,
    };
    let value = match value {
        Cow::Borrowed(bytes) => Cow::Borrowed(core::str::from_utf8(bytes).ok()?),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8(bytes).ok()?),
    };
    Some(match negative {
        true => Cow::Owned(format!("-{value}")),
        false => value,
    })
}

fn of_text(
    text: &str,
    array: bool,
    types: [Option<ColumnType>; 3],
    found: &mut dyn FnMut(Key),
) -> Option<()> {
    match array {
        true => elements(text, &mut |element| {
            found(converted(element, types)?);
            Some(())
        }),
        false => {
            found(converted(text, types)?);
            Some(())
        }
    }
}

fn of_parameter(
    parameter: &Parameter<'_>,
    array: bool,
    [cast, column]: [Option<ColumnType>; 2],
    found: &mut dyn FnMut(Key),
) -> Option<()> {
    let bytes = parameter.value?;
    let declared = |oid: u32| match oid {
        0 | UNKNOWN_OID => None,
        _ => Some(ColumnType::of_oid(oid)),
    };
    if !parameter.binary {
        let oid = match array {
            true => element_oid(parameter.type_oid),
            false => parameter.type_oid,
        };
        let text = core::str::from_utf8(bytes).ok()?;
        return of_text(text, array, [declared(oid), cast, column], found);
    }
    let mut one = |bytes: &[u8], oid: u32| {
        let known = declared(oid);
        // What the server will take it for, where nobody says it.
        let text = binary_text(bytes, known.or(cast).or(column)?)?;
        found(converted(&text, [known, cast, column])?);
        Some(())
    };
    match array {
        true => binary_elements(bytes, &mut one),
        false => one(bytes, parameter.type_oid),
    }
}

/// The OID of the elements of an array type (`pg_type.dat`); of any other array 0xffff_ffff, which no known type has.
fn element_oid(array: u32) -> u32 {
    match array {
        0 | UNKNOWN_OID => 0,
        1000 => 16,
        1001 => 17,
        1005 | 1007 | 1016 => 20,
        1009 | 1015 => 25,
        1182 => 1082,
        2951 => 2950,
        _ => u32::MAX,
    }
}

/// A value that is read as one type after the other: that of the parameter, of a cast, of the column.
fn converted(text: &str, types: [Option<ColumnType>; 3]) -> Option<Key> {
    let mut key: Option<Key> = None;
    let mut last = None;
    for next in types.into_iter().flatten() {
        if last == Some(next) {
            continue;
        }
        key = Some(match key {
            Some(key) => read(&key.to_string(), next)?,
            None => read(text, next)?,
        });
        last = Some(next);
    }
    Some(key.unwrap_or_else(|| Key::from_text(text)))
}

/// The key that a text is, read as a type; `None`: the type has none, or the server would refuse the text.
fn read(text: &str, column_type: ColumnType) -> Option<Key> {
    match column_type {
        // As without a catalog, so that a key has one home wherever it is named: two texts may become one key.
        ColumnType::Text { deterministic } => deterministic.then(|| Key::from_text(text)),
        ColumnType::Integer => match Key::from_text(text) {
            integer @ Key::Integer(_) => Some(integer),
            Key::Text(_) => None,
        },
        ColumnType::Uuid => uuid(text).map(Key::Text),
        ColumnType::Bool => {
            boolean(text).map(|value| Key::Text(if value { "true" } else { "false" }.to_owned()))
        }
        ColumnType::Date => is_iso_date(text.trim()).then(|| Key::Text(text.trim().to_owned())),
        ColumnType::Bytea => bytea(text).map(|bytes| Key::Text(hexadecimal(&bytes))),
        ColumnType::Other => None,
    }
}

/// The text of a value in binary form (the types' send functions).
fn binary_text(bytes: &[u8], column_type: ColumnType) -> Option<Cow<'_, str>> {
    let text = match column_type {
        ColumnType::Integer => match bytes.len() {
            2 => i16::from_be_bytes(bytes.try_into().ok()?).to_string(),
            4 => i32::from_be_bytes(bytes.try_into().ok()?).to_string(),
            8 => i64::from_be_bytes(bytes.try_into().ok()?).to_string(),
            _ => return None,
        },
        ColumnType::Text { .. } => return core::str::from_utf8(bytes).ok().map(Cow::Borrowed),
        ColumnType::Uuid if bytes.len() == 16 => dashed(bytes),
        ColumnType::Bool => match bytes {
            [0] => "false".to_owned(),
            [_] => "true".to_owned(),
            _ => return None,
        },
        ColumnType::Date => iso_date(i32::from_be_bytes(bytes.try_into().ok()?))?,
        ColumnType::Bytea => hexadecimal(bytes),
        ColumnType::Uuid | ColumnType::Other => return None,
    };
    Some(Cow::Owned(text))
}

/// Reads a uuid as PostgreSQL does: braces around it and a dash behind any four digits are allowed (uuid.c).
fn uuid(text: &str) -> Option<String> {
    let inner = match text.strip_prefix('{') {
        Some(rest) => rest.strip_suffix('}')?,
        None => text,
    };
    let mut digits = Vec::with_capacity(32);
    let mut dash_before = false;
    for byte in inner.bytes() {
        match byte {
            b'-' if !dash_before && !digits.is_empty() && digits.len() % 4 == 0 => {
                dash_before = true;
            }
            byte if byte.is_ascii_hexdigit() => {
                digits.push(u8::try_from(char::from(byte).to_digit(16)?).ok()?);
                dash_before = false;
            }
            _ => return None,
        }
    }
    if digits.len() != 32 || dash_before {
        return None;
    }
    let bytes: Vec<u8> = digits
        .chunks_exact(2)
        .filter_map(|pair| Some((pair.first()? << 4) | pair.get(1)?))
        .collect();
    Some(dashed(&bytes))
}

/// The text of a uuid's 16 bytes.
fn dashed(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Reads a boolean as PostgreSQL does: the beginning of a word is enough (`parse_bool`).
fn boolean(text: &str) -> Option<bool> {
    let word = text.trim().to_ascii_lowercase();
    let begins = |whole: &str| !word.is_empty() && whole.starts_with(&word);
    match word.as_str() {
        "1" | "on" => Some(true),
        "0" | "of" | "off" => Some(false),
        _ if begins("true") || begins("yes") => Some(true),
        _ if begins("false") || begins("no") => Some(false),
        _ => None,
    }
}

/// Whether a text is `YYYY-MM-DD`. What the server reads as a date in other forms depends on its settings.
fn is_iso_date(text: &str) -> bool {
    let mut parts = text.split('-').map(|part| {
        let digits = part.bytes().all(|byte| byte.is_ascii_digit());
        (part.len(), digits, part.parse().unwrap_or(0_u32))
    });
    let (Some(year), Some(month), Some(day), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let in_range = |(length, digits, value): (usize, bool, u32), wanted, max| {
        length == wanted && digits && (1..=max).contains(&value)
    };
    in_range(year, 4, 9999) && in_range(month, 2, 12) && in_range(day, 2, 31)
}

/// The date so many days after 2000-01-01, if its year has four digits. (Howard Hinnant, "chrono-compatible low-level date
/// algorithms", civil_from_days.)
fn iso_date(days: i32) -> Option<String> {
    let days = i64::from(days) + DAYS_TO_2000;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (1..=9999)
        .contains(&year)
        .then(|| format!("{year:04}-{month:02}-{day:02}"))
}

/// Reads bytes as PostgreSQL does: `\x` and hexadecimal digits, or text with octal escapes (`byteain`).
fn bytea(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    if let Some(digits) = text.strip_prefix("\\x") {
        let mut digits = digits.bytes().peekable();
        while let Some(high) = digits.next() {
            if matches!(high, b' ' | b'\n' | b'\t' | b'\r') {
                continue;
            }
            let value = |byte: u8| char::from(byte).to_digit(16);
            let pair = (value(high)? << 4) | value(digits.next()?)?;
            bytes.push(u8::try_from(pair).ok()?);
        }
        return Some(bytes);
    }
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        match (first, behind) {
            (b'\\', [b'\\', behind @ ..]) => {
                bytes.push(b'\\');
                rest = behind;
            }
            (
                b'\\',
                [
                    high @ b'0'..=b'3',
                    middle @ b'0'..=b'7',
                    low @ b'0'..=b'7',
                    behind @ ..,
                ],
            ) => {
                bytes.push(((high - b'0') << 6) | ((middle - b'0') << 3) | (low - b'0'));
                rest = behind;
            }
            (b'\\', _) => return None,
            (byte, _) => bytes.push(*byte),
        }
    }
    Some(bytes)
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("\\x");
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The elements of a one-dimensional array in PostgreSQL's text form; none of them may be NULL, and there must be one.
fn elements(text: &str, each: &mut dyn FnMut(&str) -> Option<()>) -> Option<()> {
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
        each(&element)?;
        match chars.next() {
            None => return Some(()),
            Some(',') => {}
            Some(_) => return None,
        }
    }
}

/// The same of the binary form (`array_send`): dimensions, whether there are NULLs, the elements' type, each dimension's
/// length and first index, then length and bytes of each element.
fn binary_elements(bytes: &[u8], each: &mut dyn FnMut(&[u8], u32) -> Option<()>) -> Option<()> {
    let word = |at: usize| {
        let four: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_be_bytes(four))
    };
    if word(0)? != 1 {
        return None;
    }
    let (oid, count) = (word(8)?, word(12)?);
    let mut at = 20;
    for _ in 0..count {
        // A length of -1 is NULL, and is longer than what there is.
        let length = usize::try_from(word(at)?).ok()?;
        at += 4;
        each(bytes.get(at..at.checked_add(length)?)?, oid)?;
        at += length;
    }
    (count > 0).then_some(())
}

#[cfg(test)]
mod tests;
