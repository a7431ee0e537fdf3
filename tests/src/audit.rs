//! Owns what a node's WAL says of a row: every change of it that was committed there, whoever made it.
//!
//! It costs the test nothing while it runs: a slot keeps the WAL, which is decoded only when somebody asks.

use std::fmt::Write as _;

use crate::{Cluster, Node, client};

const SLOT: &str = "audit";

/// Keeps the WAL of these nodes from here on.
///
/// # Panics
/// A node refuses.
pub async fn begin(nodes: &[Node]) {
    for node in nodes {
        let sql = format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'test_decoding')");
        node.execute(&sql).await;
    }
}

/// The committed transactions of a node that touch one of `parts`, each with those of its changes that do; the commit
/// timestamp, in microseconds since the epoch, is the source's where Tandem applied it. Both images where the table has
/// REPLICA IDENTITY FULL.
///
/// # Panics
/// The node refuses, or [`begin`] was not called.
pub async fn changes(node: &Node, parts: &[&str]) -> String {
    let sql = format!(
        "SELECT xid, data, CASE WHEN data LIKE 'COMMIT%' THEN (extract(epoch FROM substring(data FROM '\\(at (.*)\\)')::timestamptz) \
         * 1000000)::bigint END FROM pg_logical_slot_peek_changes('{SLOT}', NULL, NULL, 'include-timestamp', '1')"
    );
    let mut text = String::new();
    let mut inside = String::new();
    for row in client::rows(&node.connect().await, &sql).await {
        let mut row = row.into_iter();
        let mut next = || row.next().flatten().unwrap_or_default();
        let (xid, data, committed) = (next(), next(), next());
        if parts.iter().any(|part| data.contains(part)) {
            let _ = writeln!(inside, "      {data}");
        }
        if !committed.is_empty() {
            if !inside.is_empty() {
                let _ = write!(text, "    {committed} xid {xid}\n{inside}");
            }
            inside.clear();
        }
    }
    text
}

/// Writes the whole of it beside the logs, for those who look into a failure.
///
/// # Panics
/// A node refuses, or the file cannot be written.
pub async fn keep(cluster: &Cluster) {
    for node in &cluster.nodes {
        let path = cluster.dir().join(format!("audit-{}.log", node.name));
        std::fs::write(path, changes(node, &[""]).await).expect("a file can be written");
    }
}
