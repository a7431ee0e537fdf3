//! Decoder of pgoutput's logical replication messages, as borrowed views.
//!
//! Layout: PostgreSQL documentation, "Logical Replication Message Formats"; src/backend/replication/logical/proto.c.
//! Streaming and two-phase are not requested, so their messages are errors here.

use tandem_wire::lsn::Lsn;
use tandem_wire::reader::{ReadError, Reader};
use thiserror::Error;

use crate::version::PgTimestamp;

/// Why bytes are not a pgoutput message.
#[derive(Debug, Error)]
pub(crate) enum DecodeError {
    /// A field reaches past the end of the message, or bytes are left behind its end.
    #[error("pgoutput message {tag:?}: {source}")]
    Read {
        /// The message's tag.
        tag: char,
        /// What the bounded reader found.
        source: ReadError,
    },
    /// A tag that was not asked for, or that this version does not know.
    #[error("unknown pgoutput message {0:?}")]
    UnknownTag(char),
    /// A byte that selects a form (tuple kind, column kind, replica identity) has no meaning.
    #[error("pgoutput message {tag:?}: unexpected byte {byte:#04x}")]
    UnexpectedByte {
        /// The message's tag.
        tag: char,
        /// The byte.
        byte: u8,
    },
    /// A name that is not UTF-8, although the session's client_encoding is.
    #[error("pgoutput message {0:?}: a name is not UTF-8")]
    NotUtf8(char),
    /// No bytes at all.
    #[error("empty pgoutput message")]
    Empty,
}

/// One message.
#[derive(Debug)]
pub(crate) enum Message<'a> {
    /// The start of a transaction.
    Begin {
        /// Its id on the source.
        xid: u32,
    },
    /// The end of a transaction.
    Commit {
        /// Just behind the commit record: where the stream resumes.
        end_lsn: Lsn,
        /// When it committed; for a transaction that was itself replicated, when it committed at its origin.
        timestamp: PgTimestamp,
    },
    /// The transaction was replicated into this node under a replication origin.
    Origin {
        /// The position at the origin that was given to `pg_replication_origin_xact_setup`.
        lsn: Lsn,
        /// The origin's name on this node.
        name: &'a str,
    },
    /// The shape of a table, sent before its first change and again after it changed.
    Relation(RelationView<'a>),
    /// A new row.
    Insert {
        /// The table's OID on the source.
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A changed row.
    Update {
        /// The table's OID on the source.
        relation: u32,
        /// The old row or key, where the replica identity gives one.
        old: Option<OldTuple<'a>>,
        /// The new row; unchanged TOAST values are [`Column::Unchanged`].
        new: Tuple<'a>,
    },
    /// A deleted row.
    Delete {
        /// The table's OID on the source.
        relation: u32,
        /// The old row or key.
        old: OldTuple<'a>,
    },
    /// Truncated tables.
    Truncate(Vec<u32>),
    /// A logical decoding message (`pg_logical_emit_message`).
    Logical {
        /// Whether it belongs to a transaction.
        transactional: bool,
    },
    /// The name of a user-defined type. Values travel as text, so it is not needed.
    Type,
}

/// The shape of a table, as the source sees it.
#[derive(Debug)]
pub(crate) struct RelationView<'a> {
    /// The table's OID on the source.
    pub oid: u32,
    /// Schema; empty stands for pg_catalog.
    pub schema: &'a str,
    /// Table.
    pub name: &'a str,
    /// Column names, in the order in which tuples carry them.
    pub columns: Vec<&'a str>,
}

/// What an UPDATE or DELETE tells of the old row.
#[derive(Debug, Clone, Copy)]
pub(crate) enum OldTuple<'a> {
    /// Only the columns of the replica identity are set, the others read as NULL.
    Key(Tuple<'a>),
    /// The whole row (REPLICA IDENTITY FULL).
    Full(Tuple<'a>),
}

impl<'a> OldTuple<'a> {
    /// The tuple, whichever kind it is.
    pub(crate) fn tuple(&self) -> Tuple<'a> {
        match self {
            Self::Key(tuple) | Self::Full(tuple) => *tuple,
        }
    }
}

/// One column of a tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Column<'a> {
    /// SQL NULL.
    Null,
    /// A TOAST value that the UPDATE did not touch; it is not in the stream.
    Unchanged,
    /// The type's text output.
    Text(&'a [u8]),
}

/// A row's columns. Invariant: its bytes were walked once, so that iterating it again cannot fail.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tuple<'a> {
    count: usize,
    body: &'a [u8],
}

impl<'a> Tuple<'a> {
    fn read(reader: &mut Reader<'a>, tag: char) -> Result<Self, DecodeError> {
        let read = |source| DecodeError::Read { tag, source };
        let count = usize::from(reader.u16().map_err(read)?);
        let rest = reader.clone().rest();
        let before = reader.remaining();
        for _ in 0..count {
            match reader.u8().map_err(read)? {
                b'n' | b'u' => {}
                b't' => {
                    let length = reader.u32().map_err(read)?;
                    let length = usize::try_from(length).unwrap_or(usize::MAX);
                    reader.bytes(length).map_err(read)?;
                }
                byte => return Err(DecodeError::UnexpectedByte { tag, byte }),
            }
        }
        let used = before - reader.remaining();
        Ok(Self {
            count,
            body: rest.get(..used).unwrap_or_default(),
        })
    }

    /// Its bytes in the message.
    pub(crate) fn size(&self) -> usize {
        size_of::<u16>() + self.body.len()
    }

    /// The columns, in the relation's order.
    pub(crate) fn columns(&self) -> impl Iterator<Item = Column<'a>> + use<'a> {
        let mut reader = Reader::new(self.body);
        (0..self.count).map_while(move |_| match reader.u8().ok()? {
            b'n' => Some(Column::Null),
            b'u' => Some(Column::Unchanged),
            _ => {
                let length = usize::try_from(reader.u32().ok()?).ok()?;
                Some(Column::Text(reader.bytes(length).ok()?))
            }
        })
    }
}

/// Decodes one message.
///
/// # Errors
/// When the bytes are not one whole message of the kinds listed in [`Message`].
pub(crate) fn decode(bytes: &[u8]) -> Result<Message<'_>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let tag = char::from(reader.u8().map_err(|_| DecodeError::Empty)?);
    let message = decode_body(tag, &mut reader)?;
    reader
        .finish()
        .map_err(|source| DecodeError::Read { tag, source })?;
    Ok(message)
}

fn decode_body<'a>(tag: char, reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let read = |source| DecodeError::Read { tag, source };
    let text = |bytes: &'a [u8]| std::str::from_utf8(bytes).map_err(|_| DecodeError::NotUtf8(tag));
    let expect = |byte: u8, wanted: u8| {
        if byte == wanted {
            Ok(())
        } else {
            Err(DecodeError::UnexpectedByte { tag, byte })
        }
    };
    Ok(match tag {
        'B' => {
            let _final_lsn = reader.u64().map_err(read)?;
            let _timestamp = reader.i64().map_err(read)?;
            Message::Begin {
                xid: reader.u32().map_err(read)?,
            }
        }
        'C' => {
            let _flags = reader.u8().map_err(read)?;
            let _commit_lsn = reader.u64().map_err(read)?;
            let end_lsn = Lsn(reader.u64().map_err(read)?);
            Message::Commit {
                end_lsn,
                timestamp: reader.i64().map_err(read)?,
            }
        }
        'O' => {
            let lsn = Lsn(reader.u64().map_err(read)?);
            Message::Origin {
                lsn,
                name: text(reader.cstr().map_err(read)?)?,
            }
        }
        'R' => {
            let oid = reader.u32().map_err(read)?;
            let schema = text(reader.cstr().map_err(read)?)?;
            let name = text(reader.cstr().map_err(read)?)?;
            let _replica_identity = reader.u8().map_err(read)?;
            let count = reader.u16().map_err(read)?;
            let mut columns = Vec::with_capacity(usize::from(count));
            for _ in 0..count {
                let _flags = reader.u8().map_err(read)?;
                columns.push(text(reader.cstr().map_err(read)?)?);
                let _type = reader.u32().map_err(read)?;
                let _modifier = reader.i32().map_err(read)?;
            }
            Message::Relation(RelationView {
                oid,
                schema,
                name,
                columns,
            })
        }
        'Y' => {
            let _oid = reader.u32().map_err(read)?;
            reader.cstr().map_err(read)?;
            reader.cstr().map_err(read)?;
            Message::Type
        }
        'I' => {
            let relation = reader.u32().map_err(read)?;
            expect(reader.u8().map_err(read)?, b'N')?;
            Message::Insert {
                relation,
                new: Tuple::read(reader, tag)?,
            }
        }
        'U' => {
            let relation = reader.u32().map_err(read)?;
            let mut kind = reader.u8().map_err(read)?;
            let mut old = None;
            if kind == b'K' || kind == b'O' {
                let tuple = Tuple::read(reader, tag)?;
                old = Some(if kind == b'K' {
                    OldTuple::Key(tuple)
                } else {
                    OldTuple::Full(tuple)
                });
                kind = reader.u8().map_err(read)?;
            }
            expect(kind, b'N')?;
            Message::Update {
                relation,
                old,
                new: Tuple::read(reader, tag)?,
            }
        }
        'D' => {
            let relation = reader.u32().map_err(read)?;
            let kind = reader.u8().map_err(read)?;
            if kind != b'K' && kind != b'O' {
                return Err(DecodeError::UnexpectedByte { tag, byte: kind });
            }
            let tuple = Tuple::read(reader, tag)?;
            let old = if kind == b'K' {
                OldTuple::Key(tuple)
            } else {
                OldTuple::Full(tuple)
            };
            Message::Delete { relation, old }
        }
        'T' => {
            let count = reader.u32().map_err(read)?;
            let _flags = reader.u8().map_err(read)?;
            let mut relations = Vec::new();
            for _ in 0..count {
                relations.push(reader.u32().map_err(read)?);
            }
            Message::Truncate(relations)
        }
        'M' => {
            let flags = reader.u8().map_err(read)?;
            let _lsn = reader.u64().map_err(read)?;
            reader.cstr().map_err(read)?;
            let length = usize::try_from(reader.u32().map_err(read)?).unwrap_or(usize::MAX);
            reader.bytes(length).map_err(read)?;
            Message::Logical {
                transactional: flags & 1 == 1,
            }
        }
        unknown => return Err(DecodeError::UnknownTag(unknown)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert() -> Vec<u8> {
        let mut bytes = vec![b'I'];
        bytes.extend(16_400u32.to_be_bytes());
        bytes.push(b'N');
        bytes.extend(3u16.to_be_bytes());
        bytes.push(b't');
        bytes.extend(2u32.to_be_bytes());
        bytes.extend(b"42");
        bytes.push(b'n');
        bytes.push(b'u');
        bytes
    }

    #[test]
    fn an_insert_yields_its_columns() {
        let bytes = insert();
        let Ok(Message::Insert { relation, new }) = decode(&bytes) else {
            panic!("not an insert")
        };
        assert_eq!(relation, 16_400);
        let columns: Vec<_> = new.columns().collect();
        assert_eq!(
            columns,
            [Column::Text(b"42"), Column::Null, Column::Unchanged]
        );
        assert_eq!(bytes.len(), 6 + new.size());
    }

    #[test]
    fn bytes_behind_the_end_are_an_error() {
        let mut bytes = insert();
        bytes.push(0);
        assert!(matches!(
            decode(&bytes),
            Err(DecodeError::Read { tag: 'I', .. })
        ));
    }

    #[test]
    fn hostile_bytes_give_an_error_and_never_a_panic() {
        let seed = 0x7a_6d_64_65;
        let mut random = fastrand::Rng::with_seed(seed);
        let templates = [
            insert(),
            b"U\0\0\0\x01K\0\x01nN\0\x01u".to_vec(),
            b"T\0\0\0\x02\0\0\0\0\x01\0\0\0\x02".to_vec(),
        ];
        let mut decoded = 0u32;
        for round in 0..200_000 {
            let mut bytes = templates[round % templates.len()].clone();
            for _ in 0..random.usize(0..4) {
                let at = random.usize(0..bytes.len());
                bytes[at] = random.u8(..);
            }
            bytes.truncate(random.usize(0..=bytes.len()));
            if let Ok(message) = decode(&bytes) {
                decoded += 1;
                if let Message::Insert { new, .. } = message {
                    assert_eq!(new.columns().count(), new.count);
                }
            }
        }
        assert!(
            decoded > 1000,
            "seed {seed}: only {decoded} inputs were decodable"
        );
    }
}
