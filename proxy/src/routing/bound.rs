//! Owns what a Bind says of a statement's parameters.

use tandem_routing_rules::statement::Parameter;
use tandem_wire::{ReadError, Reader};

/// Parameters that are looked at.
const PARAMETERS_MAX: usize = 1024;

/// The parameters of a Bind, from what follows its names, and the types from what follows the text in a Parse; as many as are
/// there.
pub(super) fn parameters<'a>(bound: Option<&'a [u8]>, types: &'a [u8]) -> Vec<Parameter<'a>> {
    let mut parameters = Vec::new();
    // What is cut off is for the server to say.
    let _ = bound.map(|bound| read(bound, types, &mut parameters));
    parameters
}

fn read<'a>(
    bound: &'a [u8],
    types: &'a [u8],
    parameters: &mut Vec<Parameter<'a>>,
) -> Result<(), ReadError> {
    let mut reader = Reader::new(bound);
    let formats = usize::from(reader.u16()?);
    let formats = reader.bytes(2 * formats)?;
    let (formats, _) = formats.as_chunks::<2>();
    let mut types = Reader::new(types);
    let mut typed = types.u16().unwrap_or(0);
    for place in 0..usize::from(reader.u16()?).min(PARAMETERS_MAX) {
        let format = match formats {
            [] => None,
            [all] => Some(all),
            each => each.get(place),
        };
        let len = reader.i32()?;
        let value = match usize::try_from(len) {
            Ok(len) => Some(reader.bytes(len)?),
            Err(_) => None,
        };
        let type_oid = match typed {
            0 => 0,
            _ => types.u32().unwrap_or(0),
        };
        typed = typed.saturating_sub(1);
        parameters.push(Parameter {
            value,
            binary: format.is_some_and(|format| *format == [0, 1]),
            type_oid,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameter(value: Option<&[u8]>, binary: bool, type_oid: u32) -> Parameter<'_> {
        Parameter {
            value,
            binary,
            type_oid,
        }
    }

    #[test]
    fn values_formats_and_types_are_read_as_far_as_they_go() {
        let values = b"\0\x03\0\0\0\x01a\xff\xff\xff\xff\0\0\0\x02\0\x07";
        let types = b"\0\x02\0\0\0\x19\0\0\0\x17";
        let all = |formats: &[u8]| [formats, values].concat();
        let of = |bound: &[u8], types: &[u8]| {
            let found = parameters(Some(bound), types);
            format!("{found:?}")
        };
        let text = [
            parameter(Some(b"a"), false, 25),
            parameter(None, false, 23),
            parameter(Some(b"\0\x07"), false, 0),
        ];
        assert_eq!(of(&all(b"\0\0"), types), format!("{text:?}"));
        let mixed = [
            parameter(Some(b"a"), false, 0),
            parameter(None, true, 0),
            parameter(Some(b"\0\x07"), true, 0),
        ];
        assert_eq!(
            of(&all(b"\0\x03\0\0\0\x01\0\x01"), b""),
            format!("{mixed:?}")
        );
        let binary: Vec<bool> = parameters(Some(&all(b"\0\x01\0\x01")), b"")
            .iter()
            .map(|parameter| parameter.binary)
            .collect();
        assert_eq!(binary, [true; 3]);
        // Cut off in the last value.
        let whole = all(b"\0\0");
        let cut = parameters(whole.get(..whole.len() - 1), types);
        assert_eq!(cut.len(), 2);
        assert!(parameters(None, types).is_empty() && parameters(Some(b""), types).is_empty());
    }
}
