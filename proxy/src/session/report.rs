//! Owns the texts of what a client is told when its session cannot begin or must end.

use bytes::{BufMut, BytesMut};
use tandem_routing_rules::{Lost, state::Homed};
use tandem_wire::{ErrorReport, ServerError, encode};

use super::parked::Why;
use crate::{notifications::UNTAKEN_MAX, pool::WaitError};

/// An ErrorResponse as bytes.
pub(crate) fn bytes(report: &ErrorReport) -> BytesMut {
    let mut buf = BytesMut::new();
    encode::backend::error(&mut buf, report);
    buf
}

/// A node's error, to be passed to the client as the node sent it. At login every error is fatal.
pub(crate) fn server_error(error: &ServerError) -> BytesMut {
    let code = if error.code.len() == 5 {
        error.code.as_str()
    } else {
        "XX000"
    };
    let fields = [
        (b'S', Some("FATAL")),
        (b'V', Some("FATAL")),
        (b'C', Some(code)),
        (b'M', Some(error.message.as_str())),
        (b'D', error.detail.as_deref()),
        (b'H', error.hint.as_deref()),
    ];
    let mut body = BytesMut::new();
    for (tag, text) in fields {
        if let Some(text) = text {
            body.put_u8(tag);
            // A zero byte would end the field early.
            body.extend(text.bytes().filter(|byte| *byte != 0));
            body.put_u8(0);
        }
    }
    body.put_u8(0);
    let mut buf = BytesMut::with_capacity(body.len() + 5);
    buf.put_u8(b'E');
    // The texts of a ServerError are bounded far below 2 GB.
    buf.put_u32(u32::try_from(body.len()).unwrap_or(0).saturating_add(4));
    buf.extend_from_slice(&body);
    buf
}

/// All places for clients are taken. PostgreSQL's own text.
pub(crate) fn too_many_clients(max: usize) -> ErrorReport {
    ErrorReport::fatal("53300", "sorry, too many clients already")
        .with_hint(format!("Tandem's max_client_connections is {max}."))
}

/// The daemon is stopping and takes no new session.
pub(crate) fn shutting_down() -> ErrorReport {
    ErrorReport::fatal("57P03", "the database system is shutting down")
}

/// The daemon is stopping and this session must end. PostgreSQL's own text.
pub(crate) fn administrator_command() -> ErrorReport {
    ErrorReport::fatal(
        "57P01",
        "terminating connection due to administrator command",
    )
}

/// The login took longer than `client_login_timeout`. PostgreSQL's own text and code.
pub(crate) fn login_timeout() -> ErrorReport {
    ErrorReport::fatal("57014", "canceling authentication due to timeout")
}

/// Replication connections belong on a node.
pub(crate) fn replication_refused() -> ErrorReport {
    ErrorReport::fatal(
        "0A000",
        "replication connections are not possible through Tandem",
    )
    .with_hint("Connect to one node directly: a replication slot belongs to one node.")
}

/// The node that served the session is gone.
pub(crate) fn node_lost(node: &str) -> ErrorReport {
    ErrorReport::fatal("57P01", format!("terminating connection: node {node} was lost"))
        .with_hint("Connect again; another node will take over. Whether a transaction that was being committed is in the database is unknown.")
}

/// The node that serves the session must not take writes now.
pub(crate) fn node_fenced(node: &str, reason: &str) -> ErrorReport {
    let message = format!("terminating connection: node {node} is fenced: {reason}");
    ErrorReport::fatal("57P01", message).with_hint("Connect again; another node will take over.")
}

/// The node that served the session does not speak the protocol.
pub(crate) fn node_violation(node: &str) -> ErrorReport {
    ErrorReport::fatal(
        "08P01",
        format!("terminating connection: node {node} sent a message that is not valid"),
    )
}

/// The client does not speak the protocol.
pub(crate) fn client_violation(what: &dyn std::fmt::Display) -> ErrorReport {
    ErrorReport::fatal(
        "08P01",
        format!("terminating connection because of a protocol violation: {what}"),
    )
}

/// Tandem itself has run out of something.
pub(crate) fn out_of_descriptors() -> ErrorReport {
    ErrorReport::fatal("53000", "Tandem has no file descriptors left for a connection to a node")
        .with_hint("Raise the limit of open files (ulimit -n) of the Tandem process, or lower max_client_connections.")
}

/// No node can take the session. `tried` says for each node why.
pub(crate) fn no_node(cluster: &str, tried: &str) -> ErrorReport {
    ErrorReport::fatal(
        "57P03",
        format!("no node of cluster {cluster} can take a session now"),
    )
    .with_detail(tried.to_owned())
}

/// A statement that waited for a server is cancelled. PostgreSQL's own text.
pub(crate) fn cancelled() -> ErrorReport {
    ErrorReport::error("57014", "canceling statement due to user request")
        .with_detail("It was waiting for a server connection, nothing of it has run.")
}

/// The client's transaction has failed before it had a server. PostgreSQL's own text.
pub(crate) fn aborted() -> ErrorReport {
    ErrorReport::error(
        "25P02",
        "current transaction is aborted, commands ignored until end of transaction block",
    )
}

/// The client's statement waits for a server.
pub(crate) fn waiting() -> ErrorReport {
    ErrorReport::new(
        "NOTICE",
        "00000",
        "no server connection is free now, the statement waits in the queue",
    )
}

/// The client's statement waits for something that is no server.
pub(super) fn parked(why: Why) -> ErrorReport {
    let message = match why {
        Why::Verdict => "no node can take the statement now, it waits for one",
        Why::Handoff => {
            "the keys of the statement are on their way to another node, it waits for them"
        }
    };
    ErrorReport::new("NOTICE", "00000", message)
}

/// No node has taken the client's statement in time, of which nothing was sent.
pub(crate) fn no_node_in_time(node: &str, problems: &str) -> ErrorReport {
    let message = format!("no server connection to node {node} can be opened");
    ErrorReport::error("57P03", message)
        .with_detail(format!(
            "It was tried for query_wait_timeout. {}",
            problems.trim_end()
        ))
        .with_hint("Nothing of the statement has run. The session goes on when a node is back.")
}

/// The client goes on at a node that does not show what its session has seen on others.
pub(crate) fn behind(node: &str, others: &str) -> ErrorReport {
    let message =
        format!("node {node} does not show yet all that this session has seen on node {others}");
    ErrorReport::new("NOTICE", "01000", message)
        .with_detail("It was waited for, but did not come in time; what follows may not see it.")
}

/// The client goes on without what its session may have seen last on a node that is down.
pub(crate) fn lost(nodes: &str, here: &str, policy: Lost) -> ErrorReport {
    let (severity, code) = match policy {
        Lost::Notice => ("NOTICE", "01000"),
        Lost::Error => ("ERROR", "55000"),
    };
    let message = format!(
        "node {nodes} is down: its last transactions, which this session has seen or is to see, may not be here yet"
    );
    let report = ErrorReport::new(severity, code, message);
    let detail = format!(
        "The session goes on at node {here}. What is missing comes when node {nodes} is back."
    );
    match policy {
        Lost::Notice => report.with_detail(detail),
        Lost::Error => report.with_detail(detail).with_hint(
            "Nothing of the statement has run. Repeat it to go on without them: this is said once.",
        ),
    }
}

/// What was to be `tandem.position` is none.
pub(crate) fn bad_position(text: &str) -> ErrorReport {
    let message = format!("invalid value for parameter \"tandem.position\": \"{text}\"");
    ErrorReport::error("22023", message).with_hint(
        "A position is what SHOW tandem.position says, as a string constant: 'node:LSN', such as 'paris:0/16B3740', \
         or several of these with commas between them, in a statement of its own.",
    )
}

/// The session's position cannot be told.
pub(crate) fn no_position(node: &str) -> ErrorReport {
    let message =
        format!("node {node}, where this session was last, does not tell its position now");
    ErrorReport::error("55000", message)
}

/// There is no server for the client's statement, of which nothing was sent.
pub(crate) fn no_server(node: &str, error: &WaitError) -> ErrorReport {
    match error {
        WaitError::TooLong(_) => ErrorReport::fatal(
            "53300",
            format!("no server connection to node {node} became free within query_wait_timeout"),
        )
        .with_hint("Nothing of the statement has run. Raise pool_size, or look for transactions that stay open."),
        WaitError::Left => ErrorReport::fatal("57P03", format!("node {node} is out of service"))
            .with_hint("Nothing of the statement has run. Connect again; another node will take over."),
        WaitError::Open(open) => ErrorReport::fatal(
            "08006",
            format!("no server connection to node {node} can be opened"),
        )
        .with_detail(open.to_string())
        .with_hint("Nothing of the statement has run."),
    }
}

/// No server can be made ready for the session.
pub(crate) fn not_ready(node: &str, error: &str) -> ErrorReport {
    ErrorReport::fatal(
        "08006",
        format!("terminating connection: no server connection to node {node} can be made ready for the session"),
    )
    .with_detail(error.to_owned())
    .with_hint("Nothing of the statement has run.")
}

/// A prepared statement's answer has another shape than the client was told. PostgreSQL's own text, and the routine, by which
/// pgjdbc knows that it has to prepare anew.
pub(crate) fn outdated() -> ErrorReport {
    ErrorReport::error("0A000", "cached plan must not change result type").with_routine(REVALIDATE)
}

/// Where PostgreSQL finds that out (plancache.c).
pub(crate) const REVALIDATE: &str = "RevalidateCachedQuery";

/// The client has prepared more than it may.
pub(crate) fn too_much_prepared() -> ErrorReport {
    ErrorReport::fatal(
        "53400",
        "terminating connection: the session's prepared statements are larger than 64 MiB in all",
    )
}

/// Nodes that are not listened to now, for a client that listens.
pub(crate) fn not_heard(nodes: &[String]) -> ErrorReport {
    let message = format!(
        "notifications of node {} are not heard now",
        nodes.join(", ")
    );
    ErrorReport::new("WARNING", "01000", message)
        .with_hint("Another warning tells when they are heard again.")
}

/// The client has left too many notifications untaken.
pub(crate) fn notifications_untaken() -> ErrorReport {
    let mib = UNTAKEN_MAX >> 20;
    ErrorReport::fatal(
        "53400",
        format!("terminating connection: the client has left {mib} MiB of notifications untaken"),
    )
    .with_hint(
        "A session that listens has to read, and to be outside of transactions most of the time.",
    )
}

/// Prepared transactions of one name on several nodes.
pub(crate) fn prepared_on_several(gid: &str, nodes: &str) -> ErrorReport {
    let message = format!("prepared transaction with identifier \"{gid}\" exists on nodes {nodes}");
    ErrorReport::error("42725", message).with_hint("End each on its node, without Tandem between.")
}

/// A prepared transaction that may be on a node which does not answer.
pub(crate) fn prepared_not_found(gid: &str, nodes: &str) -> ErrorReport {
    let message = format!(
        "prepared transaction with identifier \"{gid}\" may be on node {nodes}, which does not answer"
    );
    ErrorReport::error("57P03", message)
        .with_detail("It is on none of the others.")
        .with_hint("Try again when the node is back.")
}

/// The session cannot go where a prepared transaction is.
pub(crate) fn prepared_elsewhere(gid: &str, node: &str) -> ErrorReport {
    let message = format!(
        "prepared transaction with identifier \"{gid}\" is on node {node}, and this session keeps its server on another one"
    );
    ErrorReport::error("0A000", message)
        .with_hint("End it from another session, or DISCARD ALL first.")
}

/// PostgreSQL's own text (`AtPrepare_Notify` in async.c).
pub(crate) fn prepares_listening() -> ErrorReport {
    ErrorReport::error(
        "0A000",
        "cannot PREPARE a transaction that has executed LISTEN, UNLISTEN, or NOTIFY",
    )
}

/// Large objects do not travel, and so are not made.
pub(crate) fn large_objects_refused() -> ErrorReport {
    ErrorReport::error("0A000", "large objects are not replicated")
        .with_detail("They are not in a node's stream of changes, so that the other nodes would not have them.")
        .with_hint("Keep the data in a column of type bytea, or have all large objects on one node: large_objects = \"home\" in [replication].")
}

/// What a statement uses is not where its transaction runs.
pub(crate) fn not_at_home(homed: Homed, node: &str) -> ErrorReport {
    ErrorReport::error(
        "0A000",
        format!(
            "{homed} are on the database's default home, and this transaction runs on node {node}"
        ),
    )
    .with_hint("Let this be the first statement of its transaction: then all of it runs there.")
}

/// The node wants a proof of the user's identity that Tandem cannot give.
pub(crate) fn node_login(node: &str, why: &dyn std::fmt::Display) -> ErrorReport {
    ErrorReport::fatal("28000", format!("Tandem cannot log in to node {node} as this user"))
        .with_detail(why.to_string())
        .with_hint("The node must accept what the client proved: the same SCRAM verifier or md5 hash as Tandem's, or a password from Tandem's users file.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_wire::backend::ErrorFields;

    #[test]
    fn a_nodes_error_keeps_its_code_and_texts() {
        let error = ServerError {
            severity: "FATAL".into(),
            code: "3D000".into(),
            message: "database \"x\" does not exist".into(),
            detail: None,
            hint: Some("make\0 one".into()),
        };
        let bytes = server_error(&error);
        let fields = ErrorFields::parse(&bytes[5..]).expect("well formed");
        assert_eq!(fields.code(), Some(&b"3D000"[..]));
        assert_eq!(
            fields.message(),
            Some(&b"database \"x\" does not exist"[..])
        );
        assert_eq!(fields.get(b'H'), Some(&b"make one"[..]));
        assert_eq!(fields.get(b'D'), None);
        assert_eq!(
            u32::from_be_bytes(bytes[1..5].try_into().expect("four bytes")) as usize,
            bytes.len() - 1
        );
    }
}
