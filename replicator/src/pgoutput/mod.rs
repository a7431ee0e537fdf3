//! Decoder of pgoutput's logical replication messages, protocol versions 1 to 4, as borrowed views.
//!
//! Layout: PostgreSQL documentation, "Logical Replication Message Formats"; src/backend/replication/logical/proto.c.
//! Two-phase commit is never asked for, so its messages are errors.

mod message;
mod tuple;

pub use message::{ColumnView, Message, RelationView, ReplicaIdentity};
pub use tuple::{Column, OldTuple, Tuple};

use tandem_wire::lsn::Lsn;
use tandem_wire::reader::{ReadError, Reader};
use thiserror::Error;

use crate::version::PgTimestamp;

/// Bytes that a column of a Relation message has at least: flags, an empty name, type, modifier.
const COLUMN_MIN: usize = 1 + 1 + 4 + 4;

/// Why bytes are not a pgoutput message.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// A field reaches past the end of the message, or bytes are left behind its end.
    #[error("pgoutput message {tag:?}: {source}")]
    Read {
        /// The message's tag.
        tag: char,
        /// What the bounded reader found.
        source: ReadError,
    },
    /// A tag that this version does not know.
    #[error("unknown pgoutput message {0:?}")]
    UnknownTag(char),
    /// A message of two-phase commit.
    #[error("pgoutput message {0:?} belongs to two-phase commit, which was not asked for")]
    TwoPhase(char),
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

/// Decodes one message that stands outside of Stream Start and Stream Stop.
///
/// # Errors
/// When the bytes are not one whole message of the kinds listed in [`Message`].
pub fn decode(bytes: &[u8]) -> Result<Message<'_>, DecodeError> {
    let mut fields = Fields::of(bytes)?;
    let message = fields.message()?;
    fields.finish()?;
    Ok(message)
}

/// Decodes one message that stands between Stream Start and Stream Stop, where the id of the transaction or
/// subtransaction is written behind the tag of everything that belongs to it; Origin and Stream Stop have none.
///
/// # Errors
/// As [`decode`].
pub fn decode_streamed(bytes: &[u8]) -> Result<(Option<u32>, Message<'_>), DecodeError> {
    let mut fields = Fields::of(bytes)?;
    let xid = match fields.tag {
        'R' | 'Y' | 'I' | 'U' | 'D' | 'T' | 'M' => Some(fields.u32()?),
        _ => None,
    };
    let message = fields.message()?;
    fields.finish()?;
    Ok((xid, message))
}

/// The fields behind a message's tag.
#[derive(Debug, Clone, Copy)]
struct Fields<'a> {
    tag: char,
    reader: Reader<'a>,
}

impl<'a> Fields<'a> {
    fn of(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let tag = char::from(reader.u8().map_err(|_| DecodeError::Empty)?);
        Ok(Self { tag, reader })
    }

    fn message(&mut self) -> Result<Message<'a>, DecodeError> {
        Ok(match self.tag {
            'B' => Message::Begin {
                final_lsn: self.lsn()?,
                timestamp: self.timestamp()?,
                xid: self.u32()?,
            },
            'C' => {
                let _flags = self.u8()?;
                Message::Commit {
                    commit_lsn: self.lsn()?,
                    end_lsn: self.lsn()?,
                    timestamp: self.timestamp()?,
                }
            }
            'O' => Message::Origin {
                lsn: self.lsn()?,
                name: self.name()?,
            },
            'R' => Message::Relation(self.relation()?),
            'Y' => Message::Type {
                oid: self.u32()?,
                schema: self.name()?,
                name: self.name()?,
            },
            'I' => Message::Insert {
                relation: self.u32()?,
                new: self.new_tuple()?,
            },
            'U' => {
                let relation = self.u32()?;
                // The byte ahead tells whether there is an old row at all.
                let mut ahead = *self;
                let kind = ahead.u8()?;
                let old = OldTuple::read(&mut ahead, kind)?;
                if old.is_some() {
                    *self = ahead;
                }
                Message::Update {
                    relation,
                    old,
                    new: self.new_tuple()?,
                }
            }
            'D' => {
                let relation = self.u32()?;
                let kind = self.u8()?;
                let old = OldTuple::read(self, kind)?;
                Message::Delete {
                    relation,
                    old: old.ok_or_else(|| self.unexpected(kind))?,
                }
            }
            'T' => self.truncate()?,
            'M' => Message::Logical {
                transactional: self.u8()? & 1 == 1,
                lsn: self.lsn()?,
                prefix: self.name()?,
                content: self.sized()?,
            },
            'S' => Message::StreamStart {
                xid: self.u32()?,
                first: self.u8()? != 0,
            },
            'E' => Message::StreamStop,
            'c' => {
                let xid = self.u32()?;
                let _flags = self.u8()?;
                Message::StreamCommit {
                    xid,
                    commit_lsn: self.lsn()?,
                    end_lsn: self.lsn()?,
                    timestamp: self.timestamp()?,
                }
            }
            'A' => Message::StreamAbort {
                xid: self.u32()?,
                subxid: self.u32()?,
                // The option decides, not the protocol's version: only the length tells.
                at: if self.reader.remaining() == 0 {
                    None
                } else {
                    Some((self.lsn()?, self.timestamp()?))
                },
            },
            // Begin Prepare, Prepare, Commit Prepared, Rollback Prepared, Stream Prepare.
            'b' | 'P' | 'K' | 'r' | 'p' => return Err(DecodeError::TwoPhase(self.tag)),
            unknown => return Err(DecodeError::UnknownTag(unknown)),
        })
    }

    fn relation(&mut self) -> Result<RelationView<'a>, DecodeError> {
        let oid = self.u32()?;
        let (schema, name) = (self.name()?, self.name()?);
        let identity = self.u8()?;
        let identity =
            ReplicaIdentity::from_byte(identity).ok_or_else(|| self.unexpected(identity))?;
        let count = usize::from(self.u16()?);
        let mut columns = Vec::with_capacity(count.min(self.reader.remaining() / COLUMN_MIN));
        for _ in 0..count {
            columns.push(ColumnView {
                is_key: self.u8()? & 1 == 1,
                name: self.name()?,
                type_oid: self.u32()?,
                type_modifier: self.i32()?,
            });
        }
        Ok(RelationView {
            oid,
            schema,
            name,
            identity,
            columns,
        })
    }

    fn truncate(&mut self) -> Result<Message<'a>, DecodeError> {
        let count = self.u32()?;
        let options = self.u8()?;
        let mut relations = Vec::new();
        for _ in 0..count {
            relations.push(self.u32()?);
        }
        Ok(Message::Truncate {
            relations,
            cascade: options & 1 != 0,
            restart_identity: options & 2 != 0,
        })
    }

    fn new_tuple(&mut self) -> Result<Tuple<'a>, DecodeError> {
        match self.u8()? {
            b'N' => Tuple::read(self),
            byte => Err(self.unexpected(byte)),
        }
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.reader.u8().map_err(|source| self.error(source))
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.reader.u16().map_err(|source| self.error(source))
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.reader.u32().map_err(|source| self.error(source))
    }

    fn i32(&mut self) -> Result<i32, DecodeError> {
        self.reader.i32().map_err(|source| self.error(source))
    }

    fn lsn(&mut self) -> Result<Lsn, DecodeError> {
        let position = self.reader.u64().map_err(|source| self.error(source))?;
        Ok(Lsn(position))
    }

    fn timestamp(&mut self) -> Result<PgTimestamp, DecodeError> {
        self.reader.i64().map_err(|source| self.error(source))
    }

    /// A length of four bytes, and so many bytes.
    fn sized(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        self.reader
            .bytes(length)
            .map_err(|source| self.error(source))
    }

    fn name(&mut self) -> Result<&'a str, DecodeError> {
        let bytes = self.reader.cstr().map_err(|source| self.error(source))?;
        std::str::from_utf8(bytes).map_err(|_| DecodeError::NotUtf8(self.tag))
    }

    fn finish(self) -> Result<(), DecodeError> {
        self.reader.finish().map_err(|source| self.error(source))
    }

    fn error(&self, source: ReadError) -> DecodeError {
        DecodeError::Read {
            tag: self.tag,
            source,
        }
    }

    fn unexpected(&self, byte: u8) -> DecodeError {
        DecodeError::UnexpectedByte {
            tag: self.tag,
            byte,
        }
    }
}

#[cfg(test)]
mod tests;
