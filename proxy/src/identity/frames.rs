//! Owns where OIDs stand in messages, and replaces them in place. Pure.
//!
//! The forms are those of the manual, "Message Formats". A body that has another form is left as it is from there on: whoever
//! reads it next finds out.

use tandem_wire::Reader;

/// What an OID of a RowDescription names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    /// A table; 0: none.
    Relation,
    /// A type.
    Type,
}

/// Bytes of a column of a RowDescription behind its name: table, number, type, size, modifier, format.
const COLUMN_LEN: usize = 18;

/// Puts what `number` makes of an OID in the place of these four bytes.
fn replace(place: &mut [u8], number: impl FnOnce(u32) -> u32) -> Option<()> {
    let place: &mut [u8; 4] = place.try_into().ok()?;
    *place = number(u32::from_be_bytes(*place)).to_be_bytes();
    Some(())
}

/// Replaces the OIDs of a RowDescription's body.
pub(crate) fn in_rows(body: &mut [u8], mut number: impl FnMut(Space, u32) -> u32) -> Option<()> {
    let columns = Reader::new(body).u16().ok()?;
    let mut at = 2;
    for _ in 0..columns {
        let rest = body.get_mut(at..)?;
        let name = rest.iter().position(|byte| *byte == 0)?;
        let column = rest.get_mut(name + 1..)?.get_mut(..COLUMN_LEN)?;
        replace(column.get_mut(..4)?, |oid| number(Space::Relation, oid))?;
        replace(column.get_mut(6..10)?, |oid| number(Space::Type, oid))?;
        at += name + 1 + COLUMN_LEN;
    }
    Some(())
}

/// Replaces the OIDs of a ParameterDescription's body: a number of types, and the types.
pub(crate) fn in_parameters(body: &mut [u8], mut number: impl FnMut(u32) -> u32) -> Option<()> {
    let count = usize::from(Reader::new(body).u16().ok()?);
    let types = body.get_mut(2..)?.get_mut(..count * 4)?;
    types
        .chunks_exact_mut(4)
        .try_for_each(|place| replace(place, &mut number))
}

/// The same of a Parse's body behind the name: text, zero byte, types.
pub(crate) fn in_statement(rest: &mut [u8], number: impl FnMut(u32) -> u32) -> Option<()> {
    let text = rest.iter().position(|byte| *byte == 0)?;
    in_parameters(rest.get_mut(text + 1..)?, number)
}

/// The types of a Parse's body behind the name.
pub(crate) fn types_of_statement(rest: &[u8]) -> impl Iterator<Item = u32> {
    let mut reader = Reader::new(rest);
    let count = reader.cstr().and_then(|_| reader.u16()).unwrap_or(0);
    (0..count).map_while(move |_| reader.u32().ok())
}

/// Replaces the function of a FunctionCall, whose body begins with it.
pub(crate) fn in_function_call(body: &mut [u8], number: impl FnOnce(u32) -> u32) -> Option<()> {
    replace(body.get_mut(..4)?, number)
}

/// A DataRow's body with what `each` makes of the values that are not NULL; it is given the numbers of their columns.
pub(crate) fn row(
    body: &[u8],
    each: impl FnMut(usize, &[u8]) -> Option<Vec<u8>>,
) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(body.len());
    values(&mut Reader::new(body), &mut out, each)?;
    Some(out)
}

/// A number of values, and the values; those that `each` makes nothing of stay as they are.
fn values(
    reader: &mut Reader<'_>,
    out: &mut Vec<u8>,
    mut each: impl FnMut(usize, &[u8]) -> Option<Vec<u8>>,
) -> Option<()> {
    let count = reader.u16().ok()?;
    out.extend(count.to_be_bytes());
    for index in 0..usize::from(count) {
        let Some(value) = reader.value().ok()? else {
            out.extend((-1_i32).to_be_bytes());
            continue;
        };
        let other = each(index, value);
        let value = other.as_deref().unwrap_or(value);
        out.extend(i32::try_from(value.len()).ok()?.to_be_bytes());
        out.extend_from_slice(value);
    }
    Some(())
}

/// The formats of a Bind's values, or of its results.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Formats<'a>(&'a [u8]);

impl<'a> Formats<'a> {
    fn read(reader: &mut Reader<'a>) -> Option<Formats<'a>> {
        let count = usize::from(reader.u16().ok()?);
        Some(Formats(reader.bytes(count * 2).ok()?))
    }

    /// Whether the value of this number is in binary format: none is said, one for all, or one for each.
    pub(crate) fn is_binary(self, index: usize) -> bool {
        let index = if self.0.len() == 2 { 0 } else { index };
        self.0.get(index * 2..index * 2 + 2) == Some(&[0, 1])
    }
}

/// A Bind's body behind the names with what `each` makes of the values that are not NULL; it is given their numbers, and
/// whether they are in binary format.
pub(crate) fn bound(
    tail: &[u8],
    mut each: impl FnMut(usize, bool, &[u8]) -> Option<Vec<u8>>,
) -> Option<Vec<u8>> {
    let mut reader = Reader::new(tail);
    let formats = Formats::read(&mut reader)?;
    let mut out = tail.get(..2 + formats.0.len())?.to_vec();
    values(&mut reader, &mut out, |index, value| {
        each(index, formats.is_binary(index), value)
    })?;
    out.extend_from_slice(reader.rest());
    Some(out)
}

/// The formats that a Bind asks for, of its body behind the names.
pub(crate) fn result_formats(tail: &[u8]) -> Option<Formats<'_>> {
    let mut reader = Reader::new(tail);
    Formats::read(&mut reader)?;
    for _ in 0..reader.u16().ok()? {
        reader.value().ok()?;
    }
    Formats::read(&mut reader)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(columns: &[(&str, u32, u32)]) -> Vec<u8> {
        let count = u16::try_from(columns.len()).expect("few");
        let mut body = count.to_be_bytes().to_vec();
        for (name, table, kind) in columns {
            body.extend(name.as_bytes());
            body.push(0);
            body.extend(table.to_be_bytes());
            body.extend([0, 1]);
            body.extend(kind.to_be_bytes());
            body.extend([0, 4, 255, 255, 255, 255, 0, 0]);
        }
        body
    }

    #[test]
    fn oids_are_replaced_where_they_stand_and_nothing_else_is() {
        let mut body = rows(&[("id", 16_400, 23), ("", 0, 25), ("mood", 16_400, 16_500)]);
        let number = |space, oid| match (space, oid) {
            (Space::Relation, 16_400) => 17_400,
            (Space::Type, 16_500) => 17_500,
            (_, oid) => oid,
        };
        assert_eq!(in_rows(&mut body, number), Some(()));
        let other = [("id", 17_400, 23), ("", 0, 25), ("mood", 17_400, 17_500)];
        assert_eq!(body, rows(&other));

        let mut body = b"\0\x02\0\0\0\x17\0\0\x40\0".to_vec();
        let up = |oid| if oid >= 16_384 { oid + 1 } else { oid };
        assert_eq!(in_parameters(&mut body, up), Some(()));
        assert_eq!(body, b"\0\x02\0\0\0\x17\0\0\x40\x01");

        let mut rest = b"SELECT $1\0\0\x01\0\0\x40\0".to_vec();
        assert_eq!(in_statement(&mut rest, up), Some(()));
        assert_eq!(types_of_statement(&rest).collect::<Vec<_>>(), [16_385]);
        assert_eq!(in_function_call(&mut rest, |_| 7), Some(()));
        assert_eq!(rest, b"\0\0\0\x07CT $1\0\0\x01\0\0\x40\x01");
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        let whole = rows(&[("id", 16_400, 23), ("mood", 16_400, 16_500)]);
        for end in 0..whole.len() {
            let mut cut = whole[..end].to_vec();
            assert_eq!(in_rows(&mut cut, |_, oid| oid), None, "{end}");
        }
        assert_eq!(in_parameters(&mut [0, 1, 0, 0, 0], |oid| oid), None);
        assert_eq!(in_statement(&mut b"SELECT 1".to_vec(), |oid| oid), None);
        assert_eq!(types_of_statement(b"SELECT 1\0\0\x09\0").count(), 0);
        assert_eq!(row(&[0, 1, 0, 0, 0, 9, 1], |_, _| None), None);
    }

    #[test]
    fn values_are_replaced_by_number_and_format() {
        // Two formats: text, binary. Two values.
        let tail = b"\0\x02\0\0\0\x01\0\x02\0\0\0\x01a\0\0\0\x02bc\0\x01\0\x01";
        let other = bound(tail, |index, is_binary, value| {
            assert_eq!((index == 1, index == 1), (is_binary, value == b"bc"));
            is_binary.then(|| b"xyz".to_vec())
        });
        let expected = b"\0\x02\0\0\0\x01\0\x02\0\0\0\x01a\0\0\0\x03xyz\0\x01\0\x01";
        assert_eq!(other.as_deref(), Some(&expected[..]));
        let formats = result_formats(tail).expect("well formed");
        assert!(formats.is_binary(0) && formats.is_binary(7));

        // One format for all; the first is NULL.
        let all = b"\0\x01\0\x01\0\x02\xff\xff\xff\xff\0\0\0\x01x\0\0";
        let mut seen = Vec::new();
        let same = bound(all, |index, is_binary, _| {
            seen.push((index, is_binary));
            None
        });
        assert_eq!(same.as_deref(), Some(&all[..]));
        assert_eq!(seen, [(1, true)]);
        assert!(!result_formats(all).expect("well formed").is_binary(0));
        assert_eq!(
            row(b"\0\x01\0\0\0\x01x", |_, _| Some(vec![])).as_deref(),
            Some(&b"\0\x01\0\0\0\0"[..])
        );
    }
}
