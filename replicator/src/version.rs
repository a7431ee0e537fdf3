//! The version of a row: which transaction wrote it, in the total order that every node shares.

use std::fmt;

/// Microseconds since 2000-01-01 00:00:00 UTC: PostgreSQL's `TimestampTz` (src/include/datatype/timestamp.h).
pub(crate) type PgTimestamp = i64;

/// Seconds between the Unix epoch and PostgreSQL's.
const EPOCH_OFFSET_SECONDS: i64 = 946_684_800;

/// The version of a row: commit timestamp, then origin node, of the transaction that wrote it.
///
/// Invariant: the order is total over versions and the same on each node, because it compares the nodes
/// *of the versions* and never the node that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Version {
    /// When the transaction committed, by the clock of the node where it was first committed.
    pub timestamp: PgTimestamp,
    /// The node where it was first committed.
    pub node: u16,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}us@{}", self.timestamp, self.node)
    }
}

/// The wall clock in PostgreSQL's unit and epoch.
pub(crate) fn pg_now() -> PgTimestamp {
    let unix_us = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| {
            i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX)
        });
    unix_us.saturating_sub(EPOCH_OFFSET_SECONDS.saturating_mul(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newer_timestamp_wins_and_the_higher_node_breaks_a_tie() {
        let at = |timestamp, node| Version { timestamp, node };
        assert!(at(2, 1) > at(1, 3));
        assert!(at(2, 2) > at(2, 1));
        assert_eq!(at(2, 2), at(2, 2));
    }
}
