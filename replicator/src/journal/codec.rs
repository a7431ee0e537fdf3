//! Transactions as bytes, and back.
//!
//! All integers are big-endian. A *shape* is pgoutput's `R` message as the source sent it, a *change* its `I`, `U`, `D`
//! or `T` message; both are kept as they were, so what they mean is what [`pgoutput`](crate::pgoutput) says.
//!
//! A transaction that stands for itself, [`encode_transaction`]:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version: 1, or 2 where there are statements |
//! | 8 | end of the transaction in the source's WAL |
//! | 8 | commit timestamp, microseconds since 2000-01-01 UTC, signed |
//! | 4 | number of shapes; each: 4 length, then the shape |
//! | 4 | number of changes; each: 4 number of its shape in this list, from 0; 4 length; then the change |
//! | 4 | version 2 only: number of statements; each: 4 number of changes before it; 4 length; then what the node tells of it |
//!
//! Nothing follows. A TRUNCATE of several tables is one change for each of them, with the same message.
//!
//! A record of a segment file ([`segment`](super::segment)) begins with one byte that says what it is:
//!
//! | kind | then |
//! |---|---|
//! | `R` | a shape; the first of the segment has the number 0, the next 1, and so on |
//! | `T` | 8 end, 8 timestamp, 4 number of changes, changes as above, by the numbers of the segment's shapes before it |
//! | `M` | the next part of a large transaction: 8 position at which its commit begins, 4 number of the part, from 1, 8 timestamp, 4 number of changes, changes as in `T` |
//! | `E` | the end of the transaction whose parts stand before it, and the changes that are not in them: as `T` |
//! | `t`, `m`, `e` | as `T`, `M`, `E`, with statements behind the changes, as above |
//! | `C` | a cause: 8 end, 2 node that first committed it, 8 its position in that node's WAL |
//! | `P` | 8: the source has written nothing else up to this position |

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use tandem_wire::lsn::Lsn;
use tandem_wire::reader::{ReadError, Reader};
use thiserror::Error;

use crate::ddl::Statement;
use crate::pgoutput::{DecodeError, Message, decode};
use crate::relation::{Interner, Relation};
use crate::transaction::{Change, Entry, Operation, Position, Transaction};

/// Version of the form that stands for itself, without statements.
const PLAIN: u8 = 1;
/// The same with statements.
const WITH_STATEMENTS: u8 = 2;

/// Why bytes are not what they should be.
#[derive(Debug, Error)]
pub(crate) enum CodecError {
    /// A field reaches past the end, or bytes are left behind it.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A shape or change that pgoutput cannot have sent.
    #[error(transparent)]
    Message(#[from] DecodeError),
    /// A form that this version does not know.
    #[error("version {0} of the encoding is not known")]
    UnknownVersion(u8),
    /// A record of a kind that this version does not know.
    #[error("records of kind {0:?} are not known")]
    UnknownRecord(char),
    /// A pgoutput message of another kind than belongs there.
    #[error("a pgoutput message {tag:?} stands where a {expected} belongs")]
    OutOfPlace {
        /// The message's tag.
        tag: char,
        /// What belongs there.
        expected: &'static str,
    },
    /// A change of a table whose shape was not given before.
    #[error("a change of shape {0}, which was not given")]
    UnknownShape(u32),
    /// Too long for a 32-bit length.
    #[error("a part of {0} bytes is too long")]
    TooLong(usize),
}

/// Appends a transaction together with the shapes of its tables.
///
/// # Errors
/// [`CodecError::TooLong`] for a change that no PostgreSQL can have sent. `out` then holds a part of it.
pub(crate) fn encode_transaction(
    transaction: &Transaction,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let mut numbers: HashMap<u64, u32> = HashMap::new();
    let mut shapes: Vec<&Relation> = Vec::new();
    for change in &transaction.changes {
        if let std::collections::hash_map::Entry::Vacant(vacant) = numbers.entry(change.relation.id)
        {
            vacant.insert(length(shapes.len())?);
            shapes.push(&change.relation);
        }
    }
    out.put_u8(if transaction.statements.is_empty() {
        PLAIN
    } else {
        WITH_STATEMENTS
    });
    put_stamp(transaction, out);
    out.put_u32(length(shapes.len())?);
    for shape in shapes {
        put_bytes(&shape.message, out)?;
    }
    put_changes(&transaction.changes, out, |relation| {
        numbers.get(&relation.id).copied()
    })?;
    put_statements(&transaction.statements, out)
}

/// Reads what [`encode_transaction`] wrote. The changes share one copy of `bytes`.
///
/// # Errors
/// When the bytes are anything else.
pub(crate) fn decode_transaction(
    bytes: &[u8],
    interner: &Interner,
) -> Result<Transaction, CodecError> {
    let bytes = Bytes::copy_from_slice(bytes);
    let mut reader = Reader::new(&bytes);
    let version = reader.u8()?;
    if !matches!(version, PLAIN | WITH_STATEMENTS) {
        return Err(CodecError::UnknownVersion(version));
    }
    let (end_lsn, timestamp) = stamp(&mut reader)?;
    // Counts are not trusted with an allocation: each item has to be there.
    let mut shapes = Vec::new();
    for _ in 0..reader.u32()? {
        let length = size(&mut reader)?;
        shapes.push(interner.intern(reader.bytes(length)?)?);
    }
    let has_statements = version == WITH_STATEMENTS;
    let body = body(&bytes, &mut reader, &shapes, has_statements)?;
    reader.finish()?;
    Ok(Transaction {
        xid: None,
        end_lsn,
        timestamp,
        changes: body.changes,
        statements: body.statements,
        size: body.size,
    })
}

/// One record of a segment.
#[derive(Debug)]
pub(super) enum Record {
    /// The segment's next shape.
    Shape(Arc<Relation>),
    /// An entry.
    Entry(Entry),
    /// The source has written nothing else up to here.
    Position(Lsn),
    /// An entry that the reader did not want to look into.
    Skipped {
        /// Where the stream stands behind it.
        position: Position,
        /// Whether it [ends a transaction](Entry::ends_transaction).
        ends_transaction: bool,
    },
}

/// Appends the record of a shape.
pub(super) fn put_shape(relation: &Relation, out: &mut Vec<u8>) {
    out.put_u8(b'R');
    out.extend_from_slice(&relation.message);
}

/// Appends the record of a position.
pub(super) fn put_position(lsn: Lsn, out: &mut Vec<u8>) {
    out.put_u8(b'P');
    out.put_u64(lsn.0);
}

/// Appends the record of an entry; `number` knows the segment's shapes. An empty transaction is a position.
///
/// # Errors
/// As [`encode_transaction`].
pub(super) fn put_entry(
    entry: &Entry,
    out: &mut Vec<u8>,
    number: impl Fn(&Relation) -> Option<u32>,
) -> Result<(), CodecError> {
    match entry {
        Entry::Transaction(transaction) | Entry::End(transaction) => {
            let kind = if entry.is_of_parts() { b'E' } else { b'T' };
            out.put_u8(kind_of(kind, transaction));
            put_stamp(transaction, out);
            put_changes(&transaction.changes, out, number)?;
            put_statements(&transaction.statements, out)?;
        }
        Entry::Part {
            number: part_number,
            part,
        } => {
            out.put_u8(kind_of(b'M', part));
            out.put_u64(part.end_lsn.0);
            out.put_u32(*part_number);
            out.put_i64(part.timestamp);
            put_changes(&part.changes, out, number)?;
            put_statements(&part.statements, out)?;
        }
        Entry::Cause { node, lsn, end_lsn } => {
            out.put_u8(b'C');
            out.put_u64(end_lsn.0);
            out.put_u16(*node);
            out.put_u64(lsn.0);
        }
        Entry::Empty { end_lsn } => put_position(*end_lsn, out),
    }
    Ok(())
}

/// Reads a record; what stands at or before `after` is not looked into.
///
/// # Errors
/// When the bytes are no record.
pub(super) fn decode_record(
    bytes: &Bytes,
    shapes: &[Arc<Relation>],
    after: Position,
    interner: &Interner,
) -> Result<Record, CodecError> {
    let mut reader = Reader::new(bytes);
    let kind = reader.u8()?;
    if kind == b'R' {
        return Ok(Record::Shape(interner.intern(reader.rest())?));
    }
    if matches!(kind, b'c' | b'p') {
        return Err(CodecError::UnknownRecord(char::from(kind)));
    }
    let lsn = Lsn(reader.u64()?);
    let has_statements = matches!(kind, b't' | b'e' | b'm');
    let kind = kind.to_ascii_uppercase();
    let part = if kind == b'M' { reader.u32()? } else { 0 };
    let position = Position { lsn, part };
    let record = match kind {
        b'P' => Record::Position(lsn),
        b'T' | b'E' | b'M' | b'C' if position <= after => {
            reader.rest();
            Record::Skipped {
                position,
                ends_transaction: matches!(kind, b'T' | b'E'),
            }
        }
        b'T' | b'E' | b'M' => {
            let timestamp = reader.i64()?;
            let body = body(bytes, &mut reader, shapes, has_statements)?;
            let transaction = Transaction {
                xid: None,
                end_lsn: lsn,
                timestamp,
                changes: body.changes,
                statements: body.statements,
                size: body.size,
            };
            Record::Entry(match kind {
                b'T' => Entry::Transaction(transaction),
                b'E' => Entry::End(transaction),
                _ => Entry::Part {
                    number: part,
                    part: transaction,
                },
            })
        }
        b'C' => Record::Entry(Entry::Cause {
            node: reader.u16()?,
            lsn: Lsn(reader.u64()?),
            end_lsn: lsn,
        }),
        _ => return Err(CodecError::UnknownRecord(char::from(kind))),
    };
    reader.finish()?;
    Ok(record)
}

/// A record's kind, in lower case where there are statements.
fn kind_of(kind: u8, transaction: &Transaction) -> u8 {
    if transaction.statements.is_empty() {
        kind
    } else {
        kind.to_ascii_lowercase()
    }
}

fn put_stamp(transaction: &Transaction, out: &mut Vec<u8>) {
    out.put_u64(transaction.end_lsn.0);
    out.put_i64(transaction.timestamp);
}

fn put_changes(
    changes: &[Change],
    out: &mut Vec<u8>,
    number: impl Fn(&Relation) -> Option<u32>,
) -> Result<(), CodecError> {
    out.put_u32(length(changes.len())?);
    for change in changes {
        let number = number(&change.relation);
        out.put_u32(number.ok_or(CodecError::UnknownShape(u32::MAX))?);
        put_bytes(&change.message, out)?;
    }
    Ok(())
}

/// Nothing where there are none: then the form is the one without them.
fn put_statements(statements: &[Statement], out: &mut Vec<u8>) -> Result<(), CodecError> {
    if statements.is_empty() {
        return Ok(());
    }
    out.put_u32(length(statements.len())?);
    for statement in statements {
        out.put_u32(length(statement.before)?);
        put_bytes(&statement.message, out)?;
    }
    Ok(())
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
    out.put_u32(length(bytes.len())?);
    out.extend_from_slice(bytes);
    Ok(())
}

fn length(length: usize) -> Result<u32, CodecError> {
    u32::try_from(length).map_err(|_| CodecError::TooLong(length))
}

fn size(reader: &mut Reader<'_>) -> Result<usize, CodecError> {
    Ok(usize::try_from(reader.u32()?).unwrap_or(usize::MAX))
}

fn stamp(reader: &mut Reader<'_>) -> Result<(Lsn, i64), CodecError> {
    Ok((Lsn(reader.u64()?), reader.i64()?))
}

/// What a transaction consists of.
struct Body {
    changes: Vec<Change>,
    statements: Vec<Statement>,
    /// In memory.
    size: usize,
}

/// The changes, the statements where there are any, and their size. `reader` reads `bytes`.
fn body(
    bytes: &Bytes,
    reader: &mut Reader<'_>,
    shapes: &[Arc<Relation>],
    has_statements: bool,
) -> Result<Body, CodecError> {
    let (changes, mut size) = changes(bytes, reader, shapes)?;
    let mut statements = Vec::new();
    if has_statements {
        for _ in 0..reader.u32()? {
            let before = self::size(reader)?;
            let length = self::size(reader)?;
            let statement = Statement {
                before,
                message: piece(bytes, reader, length)?,
            };
            size += statement.size();
            statements.push(statement);
        }
    }
    Ok(Body {
        changes,
        statements,
        size,
    })
}

/// The next bytes, as a view. `reader` reads `bytes`.
fn piece(bytes: &Bytes, reader: &mut Reader<'_>, length: usize) -> Result<Bytes, CodecError> {
    let start = bytes.len() - reader.remaining();
    reader.bytes(length)?;
    Ok(bytes.slice(start..start + length))
}

/// The changes and their size in memory. `reader` reads `bytes`.
fn changes(
    bytes: &Bytes,
    reader: &mut Reader<'_>,
    shapes: &[Arc<Relation>],
) -> Result<(Vec<Change>, usize), CodecError> {
    let mut changes = Vec::new();
    let mut total = 0;
    for _ in 0..reader.u32()? {
        let number = reader.u32()?;
        let relation = usize::try_from(number).ok().and_then(|at| shapes.get(at));
        let relation = relation.ok_or(CodecError::UnknownShape(number))?;
        let length = size(reader)?;
        let change = Change {
            relation: Arc::clone(relation),
            operation: operation(reader.clone().bytes(length)?)?,
            message: piece(bytes, reader, length)?,
        };
        total += change.size();
        changes.push(change);
    }
    Ok((changes, total))
}

/// Checks a change, as those from the stream are, and says what it does.
fn operation(message: &[u8]) -> Result<Operation, CodecError> {
    match decode(message)? {
        Message::Insert { .. } => Ok(Operation::Insert),
        Message::Update { .. } => Ok(Operation::Update),
        Message::Delete { .. } => Ok(Operation::Delete),
        Message::Truncate { .. } => Ok(Operation::Truncate),
        _ => Err(CodecError::OutOfPlace {
            tag: message.first().map_or('?', |&tag| char::from(tag)),
            expected: "change",
        }),
    }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
