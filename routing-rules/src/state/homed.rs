//! Owns what exists on one server only and is meant for sessions of all: they have to use it on the same one, the default home.

use std::fmt;

use super::{Effect, Effects, Transaction, effects};
use crate::lex::split;

/// What a statement uses that all sessions have to use on one node; where it uses several, the last of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Homed {
    /// It takes an advisory lock.
    AdvisoryLock,
    /// It exports a snapshot, or takes one that was exported.
    Snapshot,
    /// It uses a large object.
    LargeObject,
}

impl fmt::Display for Homed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AdvisoryLock => "advisory locks",
            Self::Snapshot => "exported snapshots",
            Self::LargeObject => "large objects",
        })
    }
}

/// PostgreSQL's own functions of large objects (`pg_proc.dat` of 15 to 18).
const LARGE_OBJECT_FUNCTIONS: [&[u8]; 18] = [
    b"lo_close",
    b"lo_creat",
    b"lo_create",
    b"lo_export",
    b"lo_from_bytea",
    b"lo_get",
    b"lo_import",
    b"lo_lseek",
    b"lo_lseek64",
    b"lo_open",
    b"lo_put",
    b"lo_tell",
    b"lo_tell64",
    b"lo_truncate",
    b"lo_truncate64",
    b"lo_unlink",
    b"loread",
    b"lowrite",
];

/// The same by their numbers, in rising order: how libpq calls them in the function call protocol. A test compares them with
/// the servers' catalogs.
pub const LARGE_OBJECT_OIDS: [u32; 20] = [
    715, 764, 765, 767, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170, 3171, 3172, 3457, 3458,
    3459, 3460,
];

/// What one of PostgreSQL's own functions uses.
pub(super) fn of_function(name: &[u8]) -> Option<Homed> {
    // One that is given back is where it was taken, or is none.
    let locks = name.starts_with(b"pg_try_advisory_")
        || name.starts_with(b"pg_advisory_lock")
        || name.starts_with(b"pg_advisory_xact_lock");
    if locks {
        Some(Homed::AdvisoryLock)
    } else if name == b"pg_export_snapshot" {
        Some(Homed::Snapshot)
    } else if name.starts_with(b"lo") && LARGE_OBJECT_FUNCTIONS.contains(&name) {
        Some(Homed::LargeObject)
    } else {
        None
    }
}

impl Effects {
    /// What it uses that all sessions have to use on one node.
    #[must_use]
    pub fn homed(&self) -> Option<Homed> {
        match self.effect {
            Effect::Transaction(Transaction::Snapshot(_)) => Some(Homed::Snapshot),
            _ => self.calls_homed,
        }
    }
}

/// The same of all statements of a text.
///
/// ```
/// use tandem_routing_rules::state::{Homed, homed};
///
/// assert_eq!(homed(b"UPDATE t SET a = 1 WHERE pg_try_advisory_xact_lock(id)"), Some(Homed::AdvisoryLock));
/// ```
#[must_use]
pub fn homed(text: &[u8]) -> Option<Homed> {
    let statements = split(text, true).map_while(Result::ok);
    statements
        .filter_map(|statement| effects(statement.text, true).homed())
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_have_to_use_on_one_node_is_known_and_nothing_else_is() {
        use Homed::{AdvisoryLock, LargeObject, Snapshot};
        for (text, expected) in [
            ("SELECT pg_advisory_lock(1)", AdvisoryLock),
            (
                "SELECT pg_catalog.Pg_Advisory_Xact_Lock_Shared(1, 2)",
                AdvisoryLock,
            ),
            (
                "UPDATE t SET a = 1 WHERE \"pg_try_advisory_lock\"(id)",
                AdvisoryLock,
            ),
            ("BEGIN; SELECT pg_export_snapshot()", Snapshot),
            ("SET TRANSACTION SNAPSHOT '0-1-1'", Snapshot),
            ("SELECT lo_get(1), pg_advisory_lock(1)", LargeObject),
            ("SELECT lowrite(lo_open(1, 2), 'x')", LargeObject),
            ("INSERT INTO t VALUES (lo_import('/f'))", LargeObject),
            ("EXPLAIN ANALYZE SELECT lo_unlink(7)", LargeObject),
        ] {
            assert_eq!(homed(text.as_bytes()), Some(expected), "{text}");
        }
        for text in [
            "SELECT pg_advisory_unlock(1), pg_advisory_unlock_all()",
            "SELECT public.lo_get(1), lo_total(2), local(3)",
            "SELECT 'pg_advisory_lock(1)' -- lo_get(1)",
            "SET TRANSACTION READ ONLY",
            "SELECT 1",
        ] {
            assert_eq!(homed(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_text_tells_whether_it_notifies() {
        let notifies = |text: &str| effects(text.as_bytes(), true).notifies();
        assert!(notifies("NOTIFY a, 'b'") && notifies("SELECT pg_catalog.pg_notify('a', 'b')"));
        assert!(!notifies("SELECT own.pg_notify('a', 'b')") && !notifies("LISTEN a"));
    }
}
