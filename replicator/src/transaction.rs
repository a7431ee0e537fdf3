//! Puts the messages of one replication stream together to whole transactions.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tandem_wire::lsn::Lsn;
use thiserror::Error;

use crate::ddl::{self, Statement};
use crate::journal::codec::CodecError;
use crate::origin::OriginName;
use crate::pgoutput::{DecodeError, Message, decode};
use crate::relation::{Interner, Relation};
use crate::tables::TableFilter;
use crate::version::PgTimestamp;

/// What a change does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    /// A new row.
    Insert,
    /// A changed row.
    Update,
    /// A deleted row.
    Delete,
    /// A truncated table.
    Truncate,
}

/// One change of one table.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    /// The table.
    pub relation: Arc<Relation>,
    /// What it does.
    pub operation: Operation,
    /// The pgoutput message, checked once by [`decode`].
    pub message: Bytes,
}

impl Change {
    /// Bytes it holds in memory.
    pub(crate) fn size(&self) -> usize {
        self.message.len() + size_of::<Self>()
    }

    /// Whether it is an UPDATE whose stream carries the old key: it changed, or the replica identity is FULL.
    pub(crate) fn has_old_key(&self) -> bool {
        // pgoutput: 'U', the table's OID, then 'K' or 'O' before an old tuple.
        matches!(
            (self.message.first(), self.message.get(5)),
            (Some(b'U'), Some(b'K' | b'O'))
        )
    }
}

/// A transaction with more bytes of changes comes in parts of so many; the last one may be shorter. It depends on nothing
/// else where one ends, so that a stream which is read again has the same parts.
pub(crate) const PART_BYTES: usize = 4 << 20;

/// A transaction that was first committed on the node whose stream this is.
#[derive(Debug)]
pub(crate) struct Transaction {
    /// Its end in the source's WAL: the identity under which targets remember it.
    pub end_lsn: Lsn,
    /// When it committed.
    pub timestamp: PgTimestamp,
    /// Its id on the source, where it was streamed just now: it may not be visible there yet.
    pub xid: Option<u32>,
    /// Its changes, in the order of execution.
    pub changes: Vec<Change>,
    /// The DDL between them.
    pub statements: Vec<Statement>,
    /// Bytes of its changes and statements.
    pub size: usize,
}

/// A place in a source's stream; they order as the stream goes. A transaction's end is behind the parts that it came in,
/// they are behind the beginning of its commit, and that is not before any other transaction's end that came earlier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    /// In the source's WAL: where an entry ends, or for a part where its transaction's commit begins.
    pub lsn: Lsn,
    /// The part's number in its transaction, from 1; 0: not inside of a transaction.
    pub part: u32,
}

impl Position {
    /// Whether a part of a transaction stands before it, and the transaction's end behind it.
    pub(crate) fn is_inside(self) -> bool {
        self.part > 0
    }
}

impl From<Lsn> for Position {
    fn from(lsn: Lsn) -> Self {
        Self { lsn, part: 0 }
    }
}

/// What a stream consists of, in commit order.
#[derive(Debug)]
pub(crate) enum Entry {
    /// A transaction to deliver.
    Transaction(Transaction),
    /// The next part of a transaction that is larger than [`PART_BYTES`]. It is known to be committed.
    Part {
        /// Its number in the transaction, from 1.
        number: u32,
        /// Its changes. The transaction's end is not known yet: `end_lsn` is where its commit begins.
        part: Transaction,
    },
    /// The end of such a transaction, with the changes that are not in its parts.
    End(Transaction),
    /// At this position the source had applied another node's transaction: whatever follows in the stream may have
    /// seen it, so a target applies what follows only when it has that transaction too (causal delivery).
    Cause {
        /// The node that first committed it.
        node: u16,
        /// Its position in that node's WAL.
        lsn: Lsn,
        /// Its end in this source's WAL.
        end_lsn: Lsn,
    },
    /// A transaction that wrote nothing that is replicated.
    Empty {
        /// Its end in the source's WAL.
        end_lsn: Lsn,
    },
}

impl Entry {
    /// Where the stream stands behind it.
    pub(crate) fn position(&self) -> Position {
        match self {
            Self::Transaction(transaction) | Self::End(transaction) => transaction.end_lsn.into(),
            Self::Part { number, part } => Position {
                lsn: part.end_lsn,
                part: *number,
            },
            Self::Cause { end_lsn, .. } | Self::Empty { end_lsn } => (*end_lsn).into(),
        }
    }

    /// Whether a transaction ends with it that targets remember.
    pub(crate) fn ends_transaction(&self) -> bool {
        matches!(self, Self::Transaction(_) | Self::End(_))
    }

    /// Whether it belongs to a transaction that comes in parts.
    pub(crate) fn is_of_parts(&self) -> bool {
        matches!(self, Self::Part { .. } | Self::End(_))
    }

    /// Bytes it holds in memory, roughly.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Transaction(transaction) | Self::End(transaction) => transaction.size,
            Self::Part { part, .. } => part.size,
            Self::Cause { .. } | Self::Empty { .. } => size_of::<Self>(),
        }
    }
}

/// Why a stream cannot be put together.
#[derive(Debug, Error)]
pub(crate) enum AssembleError {
    /// A message that cannot be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A table's shape that cannot be understood.
    #[error(transparent)]
    Shape(#[from] CodecError),
    /// A message at a place where the protocol does not allow it.
    #[error("pgoutput sent {message} {place}")]
    OutOfPlace {
        /// Which message.
        message: &'static str,
        /// Where.
        place: &'static str,
    },
    /// A change of a table whose shape was never sent.
    #[error("pgoutput sent a change of relation {0} before its shape")]
    UnknownRelation(u32),
}

/// A transaction of the source's own whose end has not come yet.
struct Open {
    xid: u32,
    /// Where its commit begins.
    commit_lsn: Lsn,
    timestamp: PgTimestamp,
    /// How many parts were handed out.
    parts: u32,
    changes: Vec<Change>,
    statements: Vec<Statement>,
    size: usize,
    has_message: bool,
}

impl Open {
    /// What came since the last part, if it is enough for one.
    fn part(&mut self) -> Option<Entry> {
        if self.size < PART_BYTES {
            return None;
        }
        self.parts += 1;
        Some(Entry::Part {
            number: self.parts,
            part: self.take(self.commit_lsn),
        })
    }

    fn end(mut self, end_lsn: Lsn) -> Entry {
        let rest = self.take(end_lsn);
        if self.parts > 0 {
            Entry::End(rest)
        } else if rest.changes.is_empty() && !self.has_message {
            Entry::Empty { end_lsn }
        } else {
            Entry::Transaction(rest)
        }
    }

    fn take(&mut self, end_lsn: Lsn) -> Transaction {
        Transaction {
            end_lsn,
            timestamp: self.timestamp,
            xid: Some(self.xid),
            changes: std::mem::take(&mut self.changes),
            statements: std::mem::take(&mut self.statements),
            size: std::mem::take(&mut self.size),
        }
    }
}

/// Where the stream stands.
enum State {
    Between,
    /// Inside a transaction of the source's own.
    Local(Open),
    /// Inside a transaction that Tandem itself applied; its changes come from their own source.
    Replicated {
        node: u16,
        lsn: Lsn,
    },
}

/// Copies what is kept of a stream together. The receive buffer holds much that is not, and lives as long as any view of it.
#[derive(Default)]
struct Kept {
    block: BytesMut,
}

/// So much of what is kept lies in one piece.
const KEPT_BLOCK: usize = 64 << 10;

impl Kept {
    fn copy(&mut self, message: &[u8]) -> Bytes {
        if self.block.capacity() < message.len() {
            self.block.reserve(message.len().max(KEPT_BLOCK));
        }
        self.block.extend_from_slice(message);
        self.block.split().freeze()
    }
}

/// The state machine: [`handle`](Self::handle) takes one message and gives an entry at each commit, and before that where a
/// part is full.
pub(crate) struct Assembler {
    node: u16,
    filter: TableFilter,
    interner: Arc<Interner>,
    /// By the table's OID on the source; `None`: the table is not replicated.
    relations: HashMap<u32, Option<Arc<Relation>>>,
    kept: Kept,
    state: State,
}

impl Assembler {
    /// For the replication stream of `node`, from its start.
    pub(crate) fn new(node: u16, filter: TableFilter, interner: Arc<Interner>) -> Self {
        Self {
            node,
            filter,
            interner,
            relations: HashMap::new(),
            kept: Kept::default(),
            state: State::Between,
        }
    }

    /// Whether no transaction is open: then a keepalive's position is one up to which all is known.
    pub(crate) fn is_between_transactions(&self) -> bool {
        matches!(self.state, State::Between)
    }

    /// Takes one message.
    ///
    /// # Errors
    /// When the stream breaks the protocol; the stream must then be opened anew.
    pub(crate) fn handle(&mut self, bytes: &[u8]) -> Result<Option<Entry>, AssembleError> {
        let message = decode(bytes)?;
        match message {
            Message::Begin {
                final_lsn,
                timestamp,
                xid,
            } => {
                let State::Between = self.state else {
                    return Err(AssembleError::OutOfPlace {
                        message: "BEGIN",
                        place: "inside a transaction",
                    });
                };
                self.state = State::Local(Open {
                    xid,
                    commit_lsn: final_lsn,
                    timestamp,
                    parts: 0,
                    changes: Vec::new(),
                    statements: Vec::new(),
                    size: 0,
                    has_message: false,
                });
            }
            Message::Commit {
                commit_lsn,
                end_lsn,
                timestamp,
            } => {
                return Ok(Some(
                    match std::mem::replace(&mut self.state, State::Between) {
                        State::Between => {
                            return Err(AssembleError::OutOfPlace {
                                message: "COMMIT",
                                place: "outside a transaction",
                            });
                        }
                        // What it learnt of its own deletes: nothing that another node has to have first.
                        State::Replicated { node, .. } if node == self.node => {
                            Entry::Empty { end_lsn }
                        }
                        State::Replicated { node, lsn } => Entry::Cause { node, lsn, end_lsn },
                        // The parts were handed out under what BEGIN said.
                        State::Local(open)
                            if (open.commit_lsn, open.timestamp) != (commit_lsn, timestamp) =>
                        {
                            return Err(AssembleError::OutOfPlace {
                                message: "COMMIT",
                                place: "of another transaction than its BEGIN",
                            });
                        }
                        State::Local(open) => open.end(end_lsn),
                    },
                ));
            }
            Message::Origin { lsn, name } => {
                // A name that is not ours is a user's own subscription: its writes are this node's as far as we go.
                if let (State::Local(_), Some(origin)) = (&self.state, OriginName::parse(name)) {
                    self.state = State::Replicated {
                        node: origin.node,
                        lsn,
                    };
                }
            }
            Message::Relation(view) => {
                let relation = self.interner.intern(bytes)?;
                let replicated = self.filter.allows(&relation.schema, &relation.name);
                self.relations
                    .insert(view.oid, replicated.then_some(relation));
            }
            Message::Insert { relation, .. } => {
                return self.change(&[relation], Operation::Insert, bytes);
            }
            Message::Update { relation, .. } => {
                return self.change(&[relation], Operation::Update, bytes);
            }
            Message::Delete { relation, .. } => {
                return self.change(&[relation], Operation::Delete, bytes);
            }
            Message::Truncate { relations, .. } => {
                return self.change(&relations, Operation::Truncate, bytes);
            }
            Message::Logical {
                transactional,
                prefix,
                content,
                ..
            } => {
                if let (true, State::Local(open)) = (transactional, &mut self.state) {
                    // Also of a watermark: it has to move the targets' progress although it writes no row.
                    open.has_message = true;
                    if prefix == ddl::PREFIX {
                        let statement = Statement {
                            before: open.changes.len(),
                            message: self.kept.copy(content),
                        };
                        open.size += statement.size();
                        open.statements.push(statement);
                        return Ok(open.part());
                    }
                }
            }
            // Values travel as text, so that a type's name is not needed.
            Message::Type { .. } => {}
            Message::StreamStart { .. }
            | Message::StreamStop
            | Message::StreamCommit { .. }
            | Message::StreamAbort { .. } => {
                return Err(AssembleError::OutOfPlace {
                    message: "a part of a transaction",
                    place: "although streaming was not asked for",
                });
            }
        }
        Ok(None)
    }

    fn change(
        &mut self,
        oids: &[u32],
        operation: Operation,
        message: &[u8],
    ) -> Result<Option<Entry>, AssembleError> {
        match &mut self.state {
            State::Between => Err(AssembleError::OutOfPlace {
                message: "a change",
                place: "outside a transaction",
            }),
            State::Replicated { .. } => Ok(None),
            State::Local(open) => {
                let mut kept = None;
                for oid in oids {
                    let relation = self
                        .relations
                        .get(oid)
                        .ok_or(AssembleError::UnknownRelation(*oid))?;
                    if let Some(relation) = relation {
                        let change = Change {
                            relation: Arc::clone(relation),
                            operation,
                            message: kept.get_or_insert_with(|| self.kept.copy(message)).clone(),
                        };
                        open.size += change.size();
                        open.changes.push(change);
                    }
                }
                Ok(open.part())
            }
        }
    }
}

#[cfg(test)]
#[path = "transaction_tests.rs"]
mod tests;
