//! What a stream of pgoutput consists of.

use tandem_wire::lsn::Lsn;

use super::tuple::{OldTuple, Tuple};
use crate::version::PgTimestamp;

/// One message. Timestamps are microseconds since 2000-01-01 00:00:00 UTC.
#[derive(Debug)]
pub enum Message<'a> {
    /// The start of a transaction.
    Begin {
        /// The position of its commit record.
        final_lsn: Lsn,
        /// When it committed.
        timestamp: PgTimestamp,
        /// Its id.
        xid: u32,
    },
    /// The end of a transaction.
    Commit {
        /// The position of the commit record.
        commit_lsn: Lsn,
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
    /// The name of a user-defined type, sent before the first shape with a column of it.
    Type {
        /// The type's OID on the source.
        oid: u32,
        /// Schema; empty stands for pg_catalog.
        schema: &'a str,
        /// Type.
        name: &'a str,
    },
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
        /// The new row; unchanged TOAST values are [`Column::Unchanged`](super::Column::Unchanged).
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
    Truncate {
        /// Their OIDs on the source.
        relations: Vec<u32>,
        /// Whether CASCADE was said. The tables reached by it are among `relations`.
        cascade: bool,
        /// Whether RESTART IDENTITY was said.
        restart_identity: bool,
    },
    /// A logical decoding message (`pg_logical_emit_message`).
    Logical {
        /// Whether it belongs to a transaction.
        transactional: bool,
        /// Its position.
        lsn: Lsn,
        /// What it is for.
        prefix: &'a str,
        /// Its bytes.
        content: &'a [u8],
    },
    /// From here to [`StreamStop`](Self::StreamStop): changes of a transaction that has not ended (protocol 2).
    StreamStart {
        /// The transaction's id.
        xid: u32,
        /// Whether nothing of it was sent before.
        first: bool,
    },
    /// The end of such a part.
    StreamStop,
    /// A transaction that was sent in parts has committed.
    StreamCommit {
        /// Its id.
        xid: u32,
        /// The position of the commit record.
        commit_lsn: Lsn,
        /// Just behind the commit record.
        end_lsn: Lsn,
        /// When it committed.
        timestamp: PgTimestamp,
    },
    /// A transaction that was sent in parts, or a subtransaction of it, was rolled back.
    StreamAbort {
        /// The transaction's id.
        xid: u32,
        /// The subtransaction's; equal to `xid` when all of it was rolled back.
        subxid: u32,
        /// Position and time of the abort: with `streaming 'parallel'` only (protocol 4).
        at: Option<(Lsn, PgTimestamp)>,
    },
}

/// The shape of a table, as the source sees it.
#[derive(Debug)]
pub struct RelationView<'a> {
    /// The table's OID on the source.
    pub oid: u32,
    /// Schema; empty stands for pg_catalog.
    pub schema: &'a str,
    /// Table.
    pub name: &'a str,
    /// What UPDATE and DELETE tell of the old row.
    pub identity: ReplicaIdentity,
    /// The columns, in the order in which tuples carry them.
    pub columns: Vec<ColumnView<'a>>,
}

/// A column of a [`RelationView`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnView<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether it belongs to the replica identity; under [`ReplicaIdentity::Full`] every column does
    /// (`logicalrep_write_attrs` in src/backend/replication/logical/proto.c).
    pub is_key: bool,
    /// The OID of its type on the source.
    pub type_oid: u32,
    /// Its type's modifier (`atttypmod`), -1 for none.
    pub type_modifier: i32,
}

/// REPLICA IDENTITY (`pg_class.relreplident`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    /// Nothing.
    Nothing,
    /// The whole row.
    Full,
    /// A unique index.
    Index,
}

impl ReplicaIdentity {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            b'd' => Self::Default,
            b'n' => Self::Nothing,
            b'f' => Self::Full,
            b'i' => Self::Index,
            _ => return None,
        })
    }
}
