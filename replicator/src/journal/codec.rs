//! Transactions as bytes, and back.
//!
//! All integers are big-endian. A *shape* is pgoutput's `R` message as the source sent it, a *change* its `I`, `U`, `D`
//! or `T` message; both are kept as they were, so what they mean is what [`pgoutput`](crate::pgoutput) says.
//!
//! A transaction that stands for itself, [`encode_transaction`]:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version, [`VERSION`] |
//! | 8 | end of the transaction in the source's WAL |
//! | 8 | commit timestamp, microseconds since 2000-01-01 UTC, signed |
//! | 4 | number of shapes; each: 4 length, then the shape |
//! | 4 | number of changes; each: 4 number of its shape in this list, from 0; 4 length; then the change |
//!
//! Nothing follows. A TRUNCATE of several tables is one change for each of them, with the same message.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use tandem_wire::lsn::Lsn;
use tandem_wire::reader::{ReadError, Reader};
use thiserror::Error;

use crate::pgoutput::{DecodeError, Message, decode};
use crate::relation::{Interner, Relation};
use crate::transaction::{Change, Operation, Transaction};

/// Version of the form that stands for itself.
const VERSION: u8 = 1;

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
    out.put_u8(VERSION);
    put_stamp(transaction, out);
    out.put_u32(length(shapes.len())?);
    for shape in shapes {
        put_bytes(&shape.message, out)?;
    }
    put_changes(transaction, out, |relation| {
        numbers.get(&relation.id).copied()
    })
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
    if version != VERSION {
        return Err(CodecError::UnknownVersion(version));
    }
    let (end_lsn, timestamp) = stamp(&mut reader)?;
    // Counts are not trusted with an allocation: each item has to be there.
    let mut shapes = Vec::new();
    for _ in 0..reader.u32()? {
        let length = size(&mut reader)?;
        shapes.push(interner.intern(reader.bytes(length)?)?);
    }
    let (changes, size) = changes(&bytes, &mut reader, &shapes)?;
    reader.finish()?;
    Ok(Transaction {
        end_lsn,
        timestamp,
        changes,
        size,
    })
}

fn put_stamp(transaction: &Transaction, out: &mut Vec<u8>) {
    out.put_u64(transaction.end_lsn.0);
    out.put_i64(transaction.timestamp);
}

fn put_changes(
    transaction: &Transaction,
    out: &mut Vec<u8>,
    number: impl Fn(&Relation) -> Option<u32>,
) -> Result<(), CodecError> {
    out.put_u32(length(transaction.changes.len())?);
    for change in &transaction.changes {
        let number = number(&change.relation);
        out.put_u32(number.ok_or(CodecError::UnknownShape(u32::MAX))?);
        put_bytes(&change.message, out)?;
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
            message: {
                let start = bytes.len() - reader.remaining();
                reader.bytes(length)?;
                bytes.slice(start..start + length)
            },
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
        Message::Truncate(_) => Ok(Operation::Truncate),
        _ => Err(CodecError::OutOfPlace {
            tag: message.first().map_or('?', |&tag| char::from(tag)),
            expected: "change",
        }),
    }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
