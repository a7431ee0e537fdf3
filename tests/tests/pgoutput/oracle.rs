//! Both decoders' results in one form, to compare them.

use std::fmt::Write as _;

use pg_walstream::{LogicalReplicationMessage, LogicalReplicationParser, TupleData};
use tandem_replicator::pgoutput::{
    Column, DecodeError, Message, OldTuple, ReplicaIdentity, Tuple, decode, decode_streamed,
};
use tandem_wire::lsn::Lsn;

/// Decodes a message with ours; `in_stream`: it stands between Stream Start and Stream Stop.
pub(crate) fn ours(bytes: &[u8], in_stream: bool) -> Result<String, DecodeError> {
    let (xid, message) = if in_stream {
        decode_streamed(bytes)?
    } else {
        (None, decode(bytes)?)
    };
    Ok(format!("{} {}", prefix(xid), our_text(&message)))
}

/// Decodes a message with the other one.
pub(crate) fn theirs(bytes: &[u8], in_stream: bool) -> Result<String, String> {
    let mut parser = LogicalReplicationParser::with_protocol_version(4);
    if in_stream {
        let start = b"S\0\0\0\x01\x01";
        parser
            .parse_wal_message(start)
            .map_err(|error| error.to_string())?;
    }
    let parsed = parser
        .parse_wal_message(bytes)
        .map_err(|error| error.to_string())?;
    // It answers the stream's own id for what has none.
    let has_xid = bytes.first().is_some_and(|tag| b"RYIUDTM".contains(tag));
    let xid = parsed.xid.filter(|_| in_stream && has_xid);
    Ok(format!("{} {}", prefix(xid), their_text(&parsed.message)))
}

fn prefix(xid: Option<u32>) -> String {
    xid.map_or_else(|| "-".to_owned(), |xid| xid.to_string())
}

fn our_text(message: &Message<'_>) -> String {
    match message {
        Message::Begin {
            final_lsn: Lsn(lsn),
            timestamp,
            xid,
        } => format!("begin {lsn} {timestamp} {xid}"),
        Message::Commit {
            commit_lsn: Lsn(lsn),
            end_lsn: Lsn(end),
            timestamp,
        } => format!("commit {lsn} {end} {timestamp}"),
        Message::Origin {
            lsn: Lsn(lsn),
            name,
        } => format!("origin {lsn} {name:?}"),
        Message::Relation(view) => {
            let identity = match view.identity {
                ReplicaIdentity::Default => 'd',
                ReplicaIdentity::Nothing => 'n',
                ReplicaIdentity::Full => 'f',
                ReplicaIdentity::Index => 'i',
            };
            let mut text = format!(
                "relation {} {:?} {:?} {identity}",
                view.oid, view.schema, view.name
            );
            for column in &view.columns {
                let _ = write!(
                    text,
                    " {:?} {} {} {}",
                    column.name, column.is_key, column.type_oid, column.type_modifier
                );
            }
            text
        }
        Message::Type { oid, schema, name } => format!("type {oid} {schema:?} {name:?}"),
        Message::Insert { relation, new } => format!("insert {relation} {}", our_row(*new)),
        Message::Update { relation, old, new } => format!(
            "update {relation} {} {}",
            old.map_or_else(|| "-".to_owned(), our_old),
            our_row(*new)
        ),
        Message::Delete { relation, old } => format!("delete {relation} {}", our_old(*old)),
        Message::Truncate {
            relations,
            cascade,
            restart_identity,
        } => format!("truncate {relations:?} {cascade} {restart_identity}"),
        Message::Logical {
            transactional,
            lsn: Lsn(lsn),
            prefix,
            content,
        } => format!("message {transactional} {lsn} {prefix:?} {content:?}"),
        Message::StreamStart { xid, first } => format!("stream start {xid} {first}"),
        Message::StreamStop => "stream stop".to_owned(),
        Message::StreamCommit {
            xid,
            commit_lsn: Lsn(lsn),
            end_lsn: Lsn(end),
            timestamp,
        } => format!("stream commit {xid} {lsn} {end} {timestamp}"),
        Message::StreamAbort { xid, subxid, at } => {
            let at = at.map(|(Lsn(lsn), timestamp)| (lsn, timestamp));
            format!("stream abort {xid} {subxid} {at:?}")
        }
    }
}

fn our_old(old: OldTuple<'_>) -> String {
    let kind = match old {
        OldTuple::Key(_) => 'K',
        OldTuple::Full(_) => 'O',
    };
    format!("{kind} {}", our_row(old.tuple()))
}

fn our_row(tuple: Tuple<'_>) -> String {
    let columns = tuple.columns().map(|column| match column {
        Column::Null => ('n', &[][..]),
        Column::Unchanged => ('u', &[][..]),
        Column::Text(bytes) => ('t', bytes),
        Column::Binary(bytes) => ('b', bytes),
    });
    format!("{:?}", columns.collect::<Vec<_>>())
}

fn their_text(message: &LogicalReplicationMessage) -> String {
    use LogicalReplicationMessage as Theirs;
    match message {
        Theirs::Begin {
            final_lsn,
            timestamp,
            xid,
        } => format!("begin {final_lsn} {timestamp} {xid}"),
        Theirs::Commit {
            commit_lsn,
            end_lsn,
            timestamp,
            ..
        } => format!("commit {commit_lsn} {end_lsn} {timestamp}"),
        Theirs::Origin {
            origin_lsn,
            origin_name,
        } => format!("origin {origin_lsn} {origin_name:?}"),
        Theirs::Relation {
            relation_id,
            namespace,
            relation_name,
            replica_identity,
            columns,
        } => {
            let identity = char::from(*replica_identity);
            let mut text =
                format!("relation {relation_id} {namespace:?} {relation_name:?} {identity}");
            for column in columns {
                let _ = write!(
                    text,
                    " {:?} {} {} {}",
                    column.name,
                    column.is_key(),
                    column.type_id,
                    column.type_modifier
                );
            }
            text
        }
        Theirs::Type {
            type_id,
            namespace,
            type_name,
        } => format!("type {type_id} {namespace:?} {type_name:?}"),
        Theirs::Insert { relation_id, tuple } => {
            format!("insert {relation_id} {}", their_row(tuple))
        }
        Theirs::Update {
            relation_id,
            old_tuple,
            new_tuple,
            key_type,
        } => {
            let old = key_type.zip(old_tuple.as_ref()).map_or_else(
                || "-".to_owned(),
                |(kind, tuple)| format!("{kind} {}", their_row(tuple)),
            );
            format!("update {relation_id} {old} {}", their_row(new_tuple))
        }
        Theirs::Delete {
            relation_id,
            old_tuple,
            key_type,
        } => format!("delete {relation_id} {key_type} {}", their_row(old_tuple)),
        Theirs::Truncate {
            relation_ids,
            flags,
        } => format!(
            "truncate {relation_ids:?} {} {}",
            flags & 1 != 0,
            flags & 2 != 0
        ),
        Theirs::Message {
            flags,
            lsn,
            prefix,
            content,
        } => format!(
            "message {} {lsn} {prefix:?} {:?}",
            flags & 1 == 1,
            content.as_ref()
        ),
        Theirs::StreamStart { xid, first_segment } => format!("stream start {xid} {first_segment}"),
        Theirs::StreamStop => "stream stop".to_owned(),
        Theirs::StreamCommit {
            xid,
            commit_lsn,
            end_lsn,
            timestamp,
            ..
        } => format!("stream commit {xid} {commit_lsn} {end_lsn} {timestamp}"),
        Theirs::StreamAbort {
            xid,
            subtransaction_xid,
            abort_lsn,
            abort_timestamp,
        } => {
            let at = abort_lsn.zip(*abort_timestamp);
            format!("stream abort {xid} {subtransaction_xid} {at:?}")
        }
        two_phase => format!("{two_phase:?}"),
    }
}

fn their_row(tuple: &TupleData) -> String {
    let columns = tuple
        .columns
        .iter()
        .map(|column| (char::from(column.data_type), column.as_bytes()));
    format!("{:?}", columns.collect::<Vec<_>>())
}
