//! Owns the OIDs inside of values in binary format: arrays say the type of their elements (`array_send` in arrayfuncs.c), rows
//! the types of their columns (`record_send` in rowtypes.c). And of those that are OIDs, as catalogs have them. Pure.

use tandem_wire::Reader;

use super::view::{Form, View};

/// Values inside of values are followed so far.
const DEPTH_MAX: usize = 16;
/// The most dimensions of an array (`MAXDIM` in array.h).
const DIMENSIONS_MAX: usize = 6;

/// Which numbers a value is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Toward {
    /// The node's: it comes from a client.
    Node,
    /// The reference node's: it goes to a client.
    Reference,
}

impl View {
    /// Gives the OIDs inside of a value of this form other numbers. A value that is malformed stays as it is from there on.
    pub(crate) fn renumber(&self, value: &mut [u8], form: Form, toward: Toward) {
        let _ = self.descend(value, form, toward, 0);
    }

    fn descend(&self, value: &mut [u8], form: Form, toward: Toward, depth: usize) -> Option<()> {
        if depth == DEPTH_MAX {
            return None;
        }
        match form {
            Form::Number => self.swap_number(value, toward),
            Form::Numbers | Form::Array => {
                let mut reader = Reader::new(value);
                let dimensions = usize::try_from(reader.i32().ok()?).ok()?;
                if dimensions > DIMENSIONS_MAX {
                    return None;
                }
                let inside = match form {
                    Form::Numbers => Some(Form::Number),
                    _ => self.swap(value.get_mut(8..12)?, toward)?,
                };
                let mut at = 12 + dimensions * 8;
                while let Some(inside) = inside
                    && at < value.len()
                {
                    at = self.element(value, at, Some(inside), toward, depth)?;
                }
                Some(())
            }
            Form::Record => {
                let columns = Reader::new(value).i32().ok()?;
                let mut at = 4;
                for _ in 0..columns {
                    let inside = self.swap(value.get_mut(at..at + 4)?, toward)?;
                    at = self.element(value, at + 4, inside, toward, depth)?;
                }
                Some(())
            }
        }
    }

    /// The same of a number in a catalog: an OID, or an integer that is compared with one.
    fn swap_number(&self, value: &mut [u8], toward: Toward) -> Option<()> {
        let (high, low) = value.split_last_chunk_mut()?;
        // What is not known is PostgreSQL's own, or no OID.
        if high.iter().all(|byte| *byte == 0)
            && let Some(other) = self.any(u32::from_be_bytes(*low), toward)
        {
            *low = other.to_be_bytes();
        }
        Some(())
    }

    fn any(&self, oid: u32, toward: Toward) -> Option<u32> {
        match toward {
            Toward::Node => self.any_to_node(oid),
            Toward::Reference => self.any_to_reference(oid),
        }
    }

    /// A text with the other numbers: of an OID, or of several (`{16500,23}`, `16500 23`).
    pub(crate) fn renumber_text(&self, text: &[u8], toward: Toward) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len());
        for part in text.chunk_by(|one, next| one.is_ascii_digit() == next.is_ascii_digit()) {
            let number = std::str::from_utf8(part).ok();
            let number = number.and_then(|digits| digits.parse().ok());
            match number.and_then(|oid| self.any(oid, toward)) {
                Some(other) => out.extend_from_slice(other.to_string().as_bytes()),
                None => out.extend_from_slice(part),
            }
        }
        out
    }

    /// Goes through one value and the length before it. Answers where the next one begins.
    fn element(
        &self,
        value: &mut [u8],
        at: usize,
        form: Option<Form>,
        toward: Toward,
        depth: usize,
    ) -> Option<usize> {
        let len = Reader::new(value.get(at..)?).i32().ok()?;
        let start = at + 4;
        let Ok(len) = usize::try_from(len) else {
            return Some(start);
        };
        let inside = value.get_mut(start..)?.get_mut(..len)?;
        if let Some(form) = form {
            self.descend(inside, form, toward, depth + 1)?;
        }
        Some(start + len)
    }

    /// Replaces the OID of a type. Answers the form of that type's values.
    fn swap(&self, place: &mut [u8], toward: Toward) -> Option<Option<Form>> {
        let place: &mut [u8; 4] = place.try_into().ok()?;
        let before = u32::from_be_bytes(*place);
        let (after, reference) = match toward {
            Toward::Node => (self.to_node(before), Some(before)),
            Toward::Reference => (self.to_reference(before), self.to_reference(before)),
        };
        if let Some(after) = after {
            *place = after.to_be_bytes();
        }
        Some(reference.and_then(|oid| self.form(oid)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::tests::{Example, Oids, array, example, put};

    fn be(numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|n| n.to_be_bytes()).collect()
    }

    fn record(columns: &[(u32, Option<Vec<u8>>)]) -> Vec<u8> {
        let mut out = be(&[u32::try_from(columns.len()).expect("few")]);
        for (kind, value) in columns {
            out.extend(kind.to_be_bytes());
            put(&mut out, value.as_deref());
        }
        out
    }

    #[test]
    fn types_are_renumbered_however_deep_they_are() {
        let Example {
            view,
            node,
            reference,
        } = example();
        let made = |of: &Oids| {
            let moods = array(of.mood, &[Some(b"sad".to_vec()), None]);
            let inner = record(&[(23, Some(be(&[7]))), (of.moods, Some(moods))]);
            array(of.pair, &[Some(inner), None])
        };
        let mut value = made(&reference);
        view.renumber(&mut value, Form::Array, Toward::Node);
        assert_eq!(value, made(&node));
        view.renumber(&mut value, Form::Array, Toward::Reference);
        assert_eq!(value, made(&reference));
    }

    #[test]
    fn an_empty_array_says_its_type_too() {
        let Example {
            view,
            node,
            reference,
        } = example();
        let mut value = be(&[0, 0, reference.mood]);
        view.renumber(&mut value, Form::Array, Toward::Node);
        assert_eq!(value, be(&[0, 0, node.mood]));
    }

    #[test]
    fn numbers_in_catalogs_are_renumbered_in_both_formats() {
        let Example {
            view,
            node,
            reference,
        } = example();
        for (form, make) in [
            (Form::Number, (|oid| be(&[oid])) as fn(u32) -> Vec<u8>),
            (Form::Number, |oid| be(&[0, oid])),
            (Form::Numbers, |oid| {
                array(26, &[Some(be(&[23])), None, Some(be(&[oid]))])
            }),
        ] {
            let mut value = make(reference.mood);
            view.renumber(&mut value, form, Toward::Node);
            assert_eq!(value, make(node.mood));
            view.renumber(&mut value, form, Toward::Reference);
            assert_eq!(value, make(reference.mood));
        }
        let text = |oid: u32| format!("{{{oid},23,NULL}}").into_bytes();
        let told = view.renumber_text(&text(node.moods), Toward::Reference);
        assert_eq!(told, text(reference.moods));
        assert_eq!(
            view.renumber_text(b"99999999999", Toward::Node),
            b"99999999999"
        );
    }

    proptest! {
        #[test]
        fn there_and_back_nothing_has_changed(kinds in prop::collection::vec(0_usize..4, 0..6), cut in 0_usize..64) {
            let Example { view, reference, .. } = example();
            let of = [23, reference.mood, reference.moods, 1_184].map(|oid| oid);
            let empty = |kind: usize| match kind {
                2 => Some(array(reference.mood, &[])),
                3 => None,
                _ => Some(b"x".to_vec()),
            };
            let columns: Vec<_> = kinds.iter().map(|kind| (of[*kind], empty(*kind))).collect();
            let mut value = record(&columns);
            value.truncate(value.len().saturating_sub(cut));
            let before = value.clone();
            view.renumber(&mut value, Form::Record, Toward::Node);
            view.renumber(&mut value, Form::Record, Toward::Reference);
            prop_assert_eq!(value, before);
        }

        #[test]
        fn nonsense_does_no_harm(mut value in prop::collection::vec(any::<u8>(), 0..80)) {
            let Example { view, .. } = example();
            for form in [Form::Array, Form::Record] {
                view.renumber(&mut value, form, Toward::Node);
                view.renumber(&mut value, form, Toward::Reference);
            }
        }
    }
}
