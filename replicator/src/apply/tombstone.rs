//! Deletes that are remembered: `tandem.tombstone` holds, for a key, the version of the newest delete.
//!
//! Keys stand there as JSON arrays of the key's values, made by the target under pinned settings; the empty array
//! stands for every key of the table (TRUNCATE).

use std::fmt::Write as _;

use super::sql::{
    ShapeError, Source, Statement, TargetTable, Writer, key_condition, key_places, literal,
    qualified,
};
use crate::conflict::ConflictType;
use crate::relation::Relation;

/// A FROM clause that finds the deletes remembered for a key; `key` are SQL expressions of its values.
pub(super) fn remembered(relation: &Relation, key: &[String]) -> String {
    format!(
        "FROM tandem.tombstone d WHERE d.relation = {} AND d.key = ANY (ARRAY[jsonb_build_array({}), '[]'])",
        literal(relation),
        key.join(", ")
    )
}

/// An INSERT that remembers a delete under the key expression `key`, unless a newer one is remembered.
pub(super) fn record(
    relation: &Relation,
    key: &str,
    timestamp: usize,
    node: u16,
    from: &str,
) -> String {
    format!(
        "INSERT INTO tandem.tombstone AS d (relation, key, deleted, node) SELECT {}, {key}, ${timestamp}, {node} {from} \
         ON CONFLICT (relation, key) DO UPDATE SET deleted = excluded.deleted, node = excluded.node, id = DEFAULT \
         WHERE (d.deleted, d.node) < (excluded.deleted, excluded.node)",
        literal(relation)
    )
}

impl Writer {
    /// Remembers a delete of the old key without touching the table.
    ///
    /// # Errors
    /// When the target's table has no key, or not the source's.
    pub(super) fn bury(
        &self,
        relation: &Relation,
        table: &TargetTable,
    ) -> Result<Statement, ShapeError> {
        let mut params: Vec<_> = key_places(relation, table)?
            .into_iter()
            .map(Source::Key)
            .collect();
        let key: Vec<_> = (1..=params.len())
            .map(|number| format!("${number}"))
            .collect();
        params.push(Source::Timestamp);
        let key = format!("jsonb_build_array({})", key.join(", "));
        let sql = record(relation, &key, params.len(), self.source, "");
        Ok(Statement::new(sql, params, relation, table))
    }

    /// Reads the newest delete that is remembered for a change's key. Columns: timestamp in microseconds since
    /// 2000-01-01, node id.
    ///
    /// # Errors
    /// When the target's table has no key, or not the source's.
    pub(super) fn read_tombstone(
        &self,
        relation: &Relation,
        table: &TargetTable,
        by_new: bool,
    ) -> Result<Statement, ShapeError> {
        let params: Vec<_> = key_places(relation, table)?
            .into_iter()
            .map(Source::Key)
            .collect();
        let key: Vec<_> = (1..=params.len())
            .map(|number| format!("${number}"))
            .collect();
        let sql = format!(
            "SELECT (extract(epoch FROM d.deleted - timestamptz '2000-01-01 00:00:00+00') * 1000000)::int8, d.node {} \
             ORDER BY d.deleted DESC, d.node DESC LIMIT 1",
            remembered(relation, &key)
        );
        let statement = Statement::new(sql, params, relation, table);
        Ok(if by_new {
            statement.by_new_key()
        } else {
            statement
        })
    }

    /// A TRUNCATE as a delete of every row that is not newer, remembered for every key: rows that another node wrote
    /// later stay. `strictly`: rows as old as the delete stay too.
    pub(super) fn truncate(
        &self,
        relation: &Relation,
        table: &TargetTable,
        strictly: bool,
    ) -> Statement {
        if table.key.is_empty() {
            // Its rows have no identity, so none of them can be told to be newer; and a DELETE of them would be refused
            // for want of a replica identity.
            let sql = format!("TRUNCATE ONLY {}", qualified(relation));
            return Statement::new(sql, Vec::new(), relation, table);
        }
        let bury = record(relation, "'[]'::jsonb", 1, self.source, "");
        let sql = if strictly {
            let rows = self.delete_returning(relation, &self.older(1));
            let losers = self.log_losers(relation, 1);
            format!("WITH w AS ({rows}), l AS ({losers}) {bury}")
        } else {
            let table = qualified(relation);
            let condition = self.not_newer(1);
            format!("WITH w AS (DELETE FROM ONLY {table} AS r WHERE {condition}) {bury}")
        };
        Statement::new(sql, vec![Source::Timestamp], relation, table)
    }

    /// Deletes the row under the old key if it is older than the delete, and logs it: it was applied between the node's
    /// own delete and the moment when that was learnt.
    ///
    /// # Errors
    /// When the target's table has no key, or not the source's.
    pub(super) fn judge(
        &self,
        relation: &Relation,
        table: &TargetTable,
    ) -> Result<Statement, ShapeError> {
        let mut params = Vec::new();
        let mut condition = key_condition(relation, table, &mut params)?;
        params.push(Source::Timestamp);
        let _ = write!(condition, " AND {}", self.older(params.len()));
        let rows = self.delete_returning(relation, &condition);
        let sql = format!(
            "WITH w AS ({rows}) {}",
            self.log_losers(relation, params.len())
        );
        Ok(Statement::new(sql, params, relation, table))
    }

    fn delete_returning(&self, relation: &Relation, condition: &str) -> String {
        format!(
            "DELETE FROM ONLY {} AS r WHERE {condition} RETURNING row_to_json(r) AS image, \
             pg_xact_commit_timestamp(r.xmin) AS written, (SELECT {} FROM pg_xact_commit_timestamp_origin(r.xmin) v) AS node",
            qualified(relation),
            self.node_of
        )
    }

    /// The lines of the conflict log for the rows `w` that lost against the node's own delete.
    fn log_losers(&self, relation: &Relation, timestamp: usize) -> String {
        let name = format!("{}.{}", relation.schema, relation.name).replace('\'', "''");
        format!(
            "INSERT INTO tandem.conflict (relation, type, resolver, outcome, local_timestamp, local_node, remote_image, \
             remote_timestamp, remote_node) SELECT '{name}', '{}', 'last_update_wins', 'local', ${timestamp}, {}, image, \
             coalesce(written, ${timestamp}), coalesce(node, {}) FROM w",
            ConflictType::InsertDeleted.name(),
            self.source,
            self.source
        )
    }

    /// SQL that is true when row `r` is older than the delete. What the delete's own transaction wrote is not.
    fn older(&self, timestamp: usize) -> String {
        format!(
            "(coalesce(pg_xact_commit_timestamp(r.xmin) < ${timestamp}, true) OR (SELECT v.timestamp = ${timestamp} AND {} < {} \
             FROM pg_xact_commit_timestamp_origin(r.xmin) v))",
            self.node_of, self.source
        )
    }
}
