//! Deletes that are remembered: `tandem.tombstone` holds, for a key, the version of the newest delete.
//!
//! Keys stand there as JSON arrays of the key's values, made by the target under pinned settings; the empty array
//! stands for every key of the table (TRUNCATE).

use std::fmt::Write as _;

use super::counter::{add_up, whole_rest};
use super::params::{Params, Rows, Source, Statement};
use super::sql::{
    ShapeError, TargetTable, Writer, key_condition, key_expressions, key_param, literal, qualified,
};
use crate::conflict::ConflictType;
use crate::conflict::resolver::Resolver;
use crate::relation::Relation;
use crate::resolve::PENDING;
use crate::version::microseconds_sql;

/// A FROM clause that finds the deletes remembered for a key, an SQL expression.
pub(super) fn remembered(relation: &Relation, key: &str) -> String {
    format!(
        "FROM tandem.tombstone d WHERE d.relation = {} AND d.key = ANY (ARRAY[{key}, '[]'])",
        literal(relation)
    )
}

/// An INSERT that remembers a delete under the key expression `key`, unless a newer one is remembered; `rest` is what is
/// left of the counters, where the table has any.
pub(super) fn record(
    relation: &Relation,
    table: &TargetTable,
    key: &str,
    timestamp: &str,
    node: u16,
    rest: &str,
    from: &str,
) -> String {
    if table.counters.is_empty() {
        return remember(&literal(relation), key, timestamp, node, from);
    }
    format!(
        "INSERT INTO tandem.tombstone AS d (relation, key, deleted, node, counters) \
         SELECT {}, {key}, {timestamp}, {node}, {rest} {from} ON CONFLICT (relation, key) DO UPDATE SET {}",
        literal(relation),
        add_up(table)
    )
}

/// The same in SQL expressions: `relation` is the table's name as a literal, `timestamp` when it was deleted.
pub(crate) fn remember(
    relation: &str,
    key: &str,
    timestamp: &str,
    node: u16,
    from: &str,
) -> String {
    format!(
        "INSERT INTO tandem.tombstone AS d (relation, key, deleted, node) SELECT {relation}, {key}, {timestamp}, {node} {from} \
         ON CONFLICT (relation, key) DO UPDATE SET deleted = excluded.deleted, node = excluded.node, id = DEFAULT \
         WHERE (d.deleted, d.node) < (excluded.deleted, excluded.node)"
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
        let mut params = Params::one(relation, table);
        let key = key_param(relation, table, &mut params)?;
        let timestamp = params.add(Source::Timestamp);
        let node = self.source;
        let sql = record(relation, table, &key, &timestamp, node, "NULL::jsonb", "");
        Ok(params.statement(sql))
    }

    /// Remembers deletes of many rows of which the target has seen nothing. Fails (division by zero) if it has, or a delete
    /// is remembered for one of them.
    ///
    /// # Errors
    /// When the target's table has no key, or not the source's.
    pub(super) fn bury_unseen(
        &self,
        relation: &Relation,
        table: &TargetTable,
    ) -> Result<Statement, ShapeError> {
        let mut params = Params::new(relation, table, Rows::Many);
        let condition = key_condition(relation, table, &mut params)?;
        let key = key_param(relation, table, &mut params)?;
        let deleted = params.add(Source::Last);
        let (from, node) = ("FROM w", self.source);
        let bury = record(relation, table, "key", "deleted", node, "NULL::jsonb", from);
        let sql = format!(
            "WITH w AS MATERIALIZED (SELECT {key} AS key, {deleted} AS deleted{} \
             WHERE NOT EXISTS (SELECT FROM ONLY {} AS r WHERE {condition}) AND NOT EXISTS (SELECT {})), b AS ({bury}) {}",
            params.rows("FROM"),
            qualified(relation),
            remembered(relation, &key),
            params.all_of_w()
        );
        Ok(params.statement(sql))
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
        let mut params = Params::one(relation, table);
        let key = key_param(relation, table, &mut params)?;
        let sql = format!(
            "SELECT {}, d.node {} ORDER BY d.deleted DESC, d.node DESC LIMIT 1",
            microseconds_sql("d.deleted"),
            remembered(relation, &key)
        );
        let statement = params.statement(sql);
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
        let mut params = Params::one(relation, table);
        if table.key.is_empty() {
            // Its rows have no identity, so none of them can be told to be newer; and a DELETE of them would be refused
            // for want of a replica identity.
            let sql = format!("TRUNCATE ONLY {}", qualified(relation));
            return params.statement(sql);
        }
        let source = self.source;
        let timestamp = &params.add(Source::Timestamp);
        let all = "'[]'::jsonb";
        let bury = record(relation, table, all, timestamp, source, "NULL::jsonb", "");
        let condition = if strictly {
            self.older(relation, table, timestamp)
        } else {
            self.not_newer(relation, table, timestamp)
        };
        let rows = self.delete_returning(relation, table, &condition);
        let losers = if strictly {
            // A TRUNCATE names no rows, so nobody can be preferred to it.
            let resolver = Resolver::LastUpdateWins;
            format!(
                ", l AS ({})",
                self.log_losers(relation, timestamp, &resolver)
            )
        } else {
            String::new()
        };
        let rests = self.keep_rests(relation, table, timestamp);
        let sql = format!("WITH w AS ({rows}){losers}{rests} {bury}");
        params.statement(sql)
    }

    /// What deleted rows `w` had in their counters goes into the deletes that are remembered for their keys.
    fn keep_rests(&self, relation: &Relation, table: &TargetTable, timestamp: &str) -> String {
        if table.counters.is_empty() {
            return String::new();
        }
        let from = "FROM w WHERE rest IS NOT NULL";
        let source = self.source;
        let rests = record(relation, table, "key", timestamp, source, "rest", from);
        format!(", c AS ({rests})")
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
        let mut params = Params::one(relation, table);
        let mut condition = key_condition(relation, table, &mut params)?;
        let timestamp = params.add(Source::Timestamp);
        let older = self.older(relation, table, &timestamp);
        let _ = write!(condition, " AND {older}");
        let rows = self.delete_returning(relation, table, &condition);
        let rests = self.keep_rests(relation, table, &timestamp);
        let losers = self.log_losers(relation, &timestamp, &table.resolver);
        let sql = format!("WITH w AS ({rows}){rests} {losers}");
        Ok(params.statement(sql))
    }

    fn delete_returning(
        &self,
        relation: &Relation,
        table: &TargetTable,
        condition: &str,
    ) -> String {
        let rest = if table.counters.is_empty() {
            "NULL::jsonb".to_owned()
        } else {
            whole_rest(table)
        };
        format!(
            "DELETE FROM ONLY {} AS r WHERE {condition} RETURNING row_to_json(r.*) AS image, {} AS written, {} AS node, \
             {} AS key, {rest} AS rest",
            qualified(relation),
            self.written(relation, table),
            self.written_by(relation, table),
            key_expressions(table)
        )
    }

    /// The lines of the conflict log for the rows `w` that lost against the node's own delete.
    fn log_losers(&self, relation: &Relation, timestamp: &str, resolver: &Resolver) -> String {
        let outcome = if resolver.is_layered() {
            PENDING
        } else {
            "local"
        };
        let name = format!("{}.{}", relation.schema, relation.name).replace('\'', "''");
        format!(
            "INSERT INTO tandem.conflict (relation, type, resolver, outcome, local_timestamp, local_node, remote_image, \
             remote_timestamp, remote_node) SELECT '{name}', '{}', '{}', '{outcome}', {timestamp}, {}, image, \
             coalesce(written, {timestamp}), coalesce(node, {}) FROM w",
            ConflictType::InsertDeleted.name(),
            resolver.name(),
            self.source,
            self.source
        )
    }
}
