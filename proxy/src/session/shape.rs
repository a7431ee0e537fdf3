//! Owns the shape of what a statement takes and answers, as Describe tells it: what a client that was told one may rely on.
//!
//! PostgreSQL fixes it when a statement is prepared and refuses the statement with 0A000 once the tables have another one
//! (`RevalidateCachedQuery` in plancache.c). Preparing it anew gives the new shape without a word, so whoever does that for a
//! client has to compare.
//!
//! Left out is what may differ without anybody noticing: OIDs of tables and numbers of columns, and formats. The OIDs of types
//! count; those of a node's own types count on that node only, because each node has given its own.

use tandem_routing_rules::lex::Lexer;
use tandem_wire::{Reader, backend::RowDescription};
use xxhash_rust::xxh3::Xxh3;

/// OIDs from here on are assigned when a cluster or an object is made (`FirstGenbkiObjectId` in access/transam.h).
const FIRST_ASSIGNED_OID: u32 = 10_000;

/// Hashes of the same things: with all OIDs, and with those only that are the same on every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Digest {
    exact: u64,
    portable: u64,
}

#[derive(Default)]
struct Digester {
    exact: Xxh3,
    portable: Xxh3,
}

impl Digester {
    fn update(&mut self, bytes: &[u8]) {
        self.exact.update(bytes);
        self.portable.update(bytes);
    }

    fn update_type(&mut self, oid: u32) {
        self.exact.update(&oid.to_be_bytes());
        let portable = if oid < FIRST_ASSIGNED_OID {
            oid
        } else {
            u32::MAX
        };
        self.portable.update(&portable.to_be_bytes());
    }

    fn digest(&self) -> Digest {
        Digest {
            exact: self.exact.digest(),
            portable: self.portable.digest(),
        }
    }
}

/// The types of a statement's parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parameters(Digest);

impl Parameters {
    /// Of the body of a ParameterDescription; none when it is malformed.
    pub(crate) fn read(body: &[u8]) -> Option<Parameters> {
        let mut reader = Reader::new(body);
        let mut digester = Digester::default();
        for _ in 0..reader.u16().ok()? {
            digester.update_type(reader.u32().ok()?);
        }
        reader.finish().ok()?;
        Some(Parameters(digester.digest()))
    }
}

/// The shape of a statement's answer, and of its parameters as far as they are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Index of the node that told it.
    node: usize,
    /// Names and types of the columns.
    rows: Digest,
    /// Parameters, and modifiers of the columns' types: of a portal the one is not told, and the other is what planning has
    /// made of it.
    more: Option<Digest>,
}

impl Shape {
    /// Of what the node `node` has answered to Describe: the body of a RowDescription, or none for NoData. `parameters`: where
    /// a statement was described. None when it is malformed.
    pub(crate) fn read(
        node: usize,
        parameters: Option<Parameters>,
        rows: Option<&[u8]>,
    ) -> Option<Shape> {
        let (mut shape, mut more) = (Digester::default(), Digester::default());
        if let Some(body) = rows {
            let rows = RowDescription::parse(body).ok()?;
            shape.update(&rows.len().to_be_bytes());
            for column in rows.columns() {
                shape.update(column.name);
                shape.update(&[0]);
                shape.update_type(column.type_oid);
                more.update(&column.type_modifier.to_be_bytes());
            }
        }
        let more = parameters.map(|Parameters(digest)| {
            more.exact.update(&digest.exact.to_be_bytes());
            more.portable.update(&digest.portable.to_be_bytes());
            more.digest()
        });
        Some(Shape {
            node,
            rows: shape.digest(),
            more,
        })
    }

    /// Whether it is all that Describe can tell.
    pub(crate) fn is_whole(&self) -> bool {
        self.more.is_some()
    }

    /// Whether a client that was told this gets what it expects where the statement has surely this other shape.
    pub(crate) fn is_kept_by(&self, other: &Shape) -> bool {
        let same = |one: Digest, another: Digest| match self.node == other.node {
            true => one.exact == another.exact,
            false => one.portable == another.portable,
        };
        same(self.rows, other.rows)
            && self
                .more
                .is_none_or(|more| other.more.is_some_and(|others| same(more, others)))
    }
}

/// Whether the answers of a statement with this text may differ in shape from one time to the next, in PostgreSQL too:
/// FETCH answers what its cursor has.
pub(crate) fn varies(text: &[u8]) -> bool {
    let first = Lexer::new(text, true).significant().next();
    first.is_some_and(|token| token.is_word("fetch"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One column: its name, table, type, modifier and format.
    type Column = (&'static str, u32, u32, i32, i16);

    const ID: Column = ("id", 16_400, 23, -1, 0);
    const NAME: Column = ("name", 16_400, 1043, 14, 0);
    const MOOD: Column = ("mood", 16_400, 16_500, -1, 0);

    fn rows(columns: &[Column]) -> Vec<u8> {
        let count = u16::try_from(columns.len()).expect("few");
        let mut body = count.to_be_bytes().to_vec();
        for (name, table, kind, modifier, format) in columns {
            body.extend(name.as_bytes());
            body.push(0);
            body.extend(table.to_be_bytes());
            body.extend([0, 1]);
            body.extend(kind.to_be_bytes());
            body.extend([0, 4]);
            body.extend(modifier.to_be_bytes());
            body.extend(format.to_be_bytes());
        }
        body
    }

    fn parameters(types: &[u32]) -> Option<Parameters> {
        let count = u16::try_from(types.len()).expect("few");
        let mut body = count.to_be_bytes().to_vec();
        body.extend(types.iter().flat_map(|oid| oid.to_be_bytes()));
        Some(Parameters::read(&body).expect("well formed"))
    }

    fn statement(node: usize, types: &[u32], columns: &[Column]) -> Shape {
        Shape::read(node, parameters(types), Some(&rows(columns))).expect("well formed")
    }

    fn portal(node: usize, columns: &[Column]) -> Shape {
        Shape::read(node, None, Some(&rows(columns))).expect("well formed")
    }

    #[test]
    fn what_a_client_cannot_see_in_its_rows_makes_no_difference() {
        let told = statement(0, &[23], &[ID, NAME]);
        let elsewhere = ("id", 99_999, 23, -1, 1);
        assert!(told.is_kept_by(&told));
        assert!(told.is_kept_by(&statement(0, &[23], &[elsewhere, NAME])));
        assert!(told.is_kept_by(&statement(1, &[23], &[elsewhere, NAME])));
    }

    #[test]
    fn another_column_name_type_modifier_or_parameter_is_another_shape() {
        let told = statement(0, &[23], &[ID, NAME]);
        for node in [0, 1] {
            for other in [
                statement(node, &[23], &[ID]),
                statement(node, &[23], &[NAME, ID]),
                statement(node, &[23], &[ID, NAME, MOOD]),
                statement(node, &[23], &[("no", 16_400, 23, -1, 0), NAME]),
                statement(node, &[23], &[("id", 16_400, 25, -1, 0), NAME]),
                statement(node, &[23], &[("id", 16_400, 16_500, -1, 0), NAME]),
                statement(node, &[23], &[ID, ("name", 16_400, 1043, 24, 0)]),
                statement(node, &[25], &[ID, NAME]),
                statement(node, &[], &[ID, NAME]),
                Shape::read(node, parameters(&[23]), None).expect("no rows"),
            ] {
                assert!(!told.is_kept_by(&other) && !other.is_kept_by(&told));
            }
        }
        let none = Shape::read(0, parameters(&[]), None).expect("no rows");
        assert!(none.is_kept_by(&none) && !none.is_kept_by(&statement(0, &[], &[])));
    }

    #[test]
    fn types_of_a_nodes_own_are_compared_on_that_node_only() {
        let other_oid = ("mood", 16_400, 17_000, -1, 0);
        let told = statement(0, &[16_500], &[MOOD]);
        assert!(!told.is_kept_by(&statement(0, &[17_000], &[MOOD])));
        assert!(!told.is_kept_by(&statement(0, &[16_500], &[other_oid])));
        assert!(told.is_kept_by(&statement(1, &[17_000], &[other_oid])));
        assert!(!told.is_kept_by(&statement(1, &[25], &[other_oid])));
    }

    #[test]
    fn a_portal_tells_less_than_its_statement() {
        // Planning may find a modifier that the statement did not have.
        let planned = ("id", 16_400, 23, 655_366, 0);
        assert!(portal(0, &[planned]).is_kept_by(&statement(0, &[23], &[ID])));
        assert!(portal(0, &[ID]).is_kept_by(&portal(0, &[planned])));
        assert!(!portal(0, &[ID]).is_kept_by(&statement(0, &[], &[NAME])));
        // What is not known is not taken to be the same.
        assert!(!statement(0, &[23], &[ID]).is_kept_by(&portal(0, &[ID])));
        assert!(statement(0, &[], &[ID]).is_whole() && !portal(0, &[ID]).is_whole());
    }

    #[test]
    fn what_is_malformed_has_no_shape() {
        let whole = rows(&[ID, NAME]);
        for end in 0..whole.len() {
            assert_eq!(Shape::read(0, None, whole.get(..end)), None, "{end}");
        }
        for body in [&b""[..], b"\0", b"\0\x01", b"\0\x01\0\0\0", b"\0\0\0"] {
            assert_eq!(Parameters::read(body), None);
        }
    }

    #[test]
    fn only_fetch_varies() {
        for text in [&b"FETCH ALL FROM c"[..], b" -- why\n/* x */fetch c"] {
            assert!(varies(text));
        }
        for text in [&b""[..], b"SELECT 1", b"\"fetch\"", b"SELECT fetch"] {
            assert!(!varies(text));
        }
    }
}
