//! The version of a row, as SQL over its alias `r`.
//!
//! It is that of the transaction that wrote the row, unless `tandem.kept` says which version the row kept when that
//! transaction rewrote it for another reason. A line there counts only while the row is still that transaction's.

use super::sql::{TargetTable, Writer, key_expressions, literal};
use crate::relation::Relation;

/// When the transaction committed that wrote row `r`, whatever it keeps.
const PLAINLY_WRITTEN: &str = "pg_xact_commit_timestamp(r.xmin)";

/// Notes that rows rewritten by the current transaction keep their version: `rows` has `key`, `written` and `node`.
pub(super) fn keep(relation: &Relation, rows: &str) -> String {
    format!(
        "INSERT INTO tandem.kept AS k (relation, key, writer, written, node) \
         SELECT {}, key, pg_current_xact_id()::xid, written, node FROM {rows} ON CONFLICT (relation, key) \
         DO UPDATE SET writer = excluded.writer, written = excluded.written, node = excluded.node",
        literal(relation)
    )
}

impl Writer {
    fn kept(relation: &Relation, table: &TargetTable, column: &str) -> String {
        format!(
            "(SELECT k.{column} FROM tandem.kept k WHERE k.relation = {} AND k.key = {} AND k.writer = r.xmin)",
            literal(relation),
            key_expressions(table)
        )
    }

    /// When the row was written; NULL if this very transaction did, or beyond the commit-timestamp horizon.
    pub(super) fn written(&self, relation: &Relation, table: &TargetTable) -> String {
        let kept = Self::kept(relation, table, "written");
        format!("coalesce({kept}, {PLAINLY_WRITTEN})")
    }

    /// The node that wrote it.
    pub(super) fn written_by(&self, relation: &Relation, table: &TargetTable) -> String {
        let kept = Self::kept(relation, table, "node");
        format!("coalesce({kept}, {})", self.plainly_written_by())
    }

    /// The node of the transaction that wrote it, whatever it keeps.
    pub(super) fn plainly_written_by(&self) -> String {
        format!(
            "(SELECT {} FROM pg_xact_commit_timestamp_origin(r.xmin) v)",
            self.node_of
        )
    }

    /// Of the fast path: true only when the row is not newer, but not always then. A run's rows are at most as new as they
    /// look, so that the look at what they keep can be left out; those that are newer than they look are in tables that keep
    /// versions.
    pub(super) fn surely_not_newer(
        &self,
        relation: &Relation,
        table: &TargetTable,
        timestamp: &str,
    ) -> String {
        if table.keeps_versions() {
            return self.not_newer(relation, table, timestamp);
        }
        let by = self.plainly_written_by();
        self.compare([PLAINLY_WRITTEN, &by], timestamp, "<=")
    }

    /// SQL that is true when the row is not newer than the change whose timestamp is `timestamp`, an expression.
    ///
    /// A row that this very transaction wrote has no timestamp yet, and one beyond the commit-timestamp horizon has
    /// none any more: both are overwritten.
    pub(super) fn not_newer(
        &self,
        relation: &Relation,
        table: &TargetTable,
        timestamp: &str,
    ) -> String {
        let (written, by) = (
            self.written(relation, table),
            self.written_by(relation, table),
        );
        self.compare([&written, &by], timestamp, "<=")
    }

    /// SQL that is true when the row is older than the change: what the change's own transaction wrote is not.
    pub(super) fn older(
        &self,
        relation: &Relation,
        table: &TargetTable,
        timestamp: &str,
    ) -> String {
        let (written, by) = (
            self.written(relation, table),
            self.written_by(relation, table),
        );
        self.compare([&written, &by], timestamp, "<")
    }

    fn compare(&self, [written, by]: [&str; 2], timestamp: &str, order: &str) -> String {
        format!(
            "(coalesce({written} < {timestamp}, true) OR ({written} = {timestamp} AND {by} {order} {}))",
            self.source
        )
    }
}
