//! Names of the replication origins under which Tandem writes, and what they say of a row.

use std::collections::HashMap;
use std::fmt::{self, Write as _};

/// The worker whose origins `tandem repair` writes under: an origin belongs to one session, and the apply sessions hold
/// worker 0's. They say nothing about progress.
pub(crate) const REPAIR: u16 = 1000;

/// `tandem_<node>_<worker>`: transactions of `node`, applied by `worker`.
///
/// Invariant: a name is never dropped while rows may carry it, because PostgreSQL reuses origin ids
/// (src/backend/replication/logical/origin.c, `replorigin_create`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct OriginName {
    /// The node that first committed the transactions.
    pub node: u16,
    /// Which of its apply sessions.
    pub worker: u16,
}

impl OriginName {
    /// Reads a name; `None` when it is not one of ours.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (node, worker) = name.strip_prefix("tandem_")?.split_once('_')?;
        Some(Self {
            node: node.parse().ok()?,
            worker: worker.parse().ok()?,
        })
    }
}

impl fmt::Display for OriginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tandem_{}_{}", self.node, self.worker)
    }
}

/// SQL that turns the origin id that `roident` gives into a node id. `own` is the id of the node where it runs,
/// `origins` are its origin ids and the node ids they stand for.
pub(crate) fn node_of(roident: &str, own: u16, origins: &HashMap<u32, u16>) -> String {
    let mut ids: Vec<_> = origins.iter().collect();
    ids.sort();
    let mut sql = format!("CASE {roident}");
    for (id, node) in ids {
        let _ = write!(sql, " WHEN {id} THEN {node}");
    }
    // Origin 0 is the node's own client; an origin that is not ours counts as the node's too.
    let _ = write!(sql, " ELSE {own} END");
    sql
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_as_written_and_others_are_not_ours() {
        let name = OriginName {
            node: 1023,
            worker: 7,
        };
        assert_eq!(OriginName::parse(&name.to_string()), Some(name));
        for other in [
            "pg_16400",
            "tandem_",
            "tandem_1",
            "tandem_x_0",
            "tandem_1_99999",
        ] {
            assert_eq!(OriginName::parse(other), None, "{other}");
        }
    }
}
