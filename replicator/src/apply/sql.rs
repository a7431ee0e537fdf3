//! The statements that an apply session prepares: one per (table, operation, column set).
//!
//! A statement of the fast path that changes no row fails (division by zero), so that nothing behind it in the
//! batch is committed before somebody has looked closer.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::counter::{contribution, rest, sum_of};
use super::incomplete::incomplete;
use super::params::{Params, Rows, Source, Statement, TargetColumn};
use super::tombstone::{record, remembered};
use super::unique::Uniques;
use crate::conflict::resolver::Resolver;
use crate::origin::node_of;
use crate::relation::Relation;
use crate::transaction::Operation;

/// A table as the target has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TargetTable {
    /// It was dropped: what other nodes wrote to it meanwhile is lost.
    pub gone: bool,
    /// Columns of the primary key; empty where there is none.
    pub key: Vec<String>,
    /// Whether equal keys have equal texts.
    pub key_is_plain: bool,
    /// The operators that the key's index compares them with: an extension's type has its own, outside the search path.
    pub key_equals: Vec<String>,
    /// Identity columns that an UPDATE may not write (GENERATED ALWAYS).
    pub fixed: Vec<String>,
    /// Columns that are computed, or were dropped: what a stream says of them is left out.
    pub generated: Vec<String>,
    /// Columns that can be written.
    pub columns: HashMap<String, TargetColumn>,
    /// Columns whose value is a sum of contributions.
    pub counters: Vec<String>,
    /// Who wins a conflict.
    pub resolver: Resolver,
    /// Constraints besides the primary key on which rows may collide.
    pub uniques: Uniques,
    /// Whether a constraint is checked at commit only.
    pub deferrable: bool,
    /// Whether a TRUNCATE of it deletes its rows one by one first.
    pub truncates_by_row: bool,
    /// Whether it takes all rows of a COPY as they are: it has no partitions and no trigger that leaves rows out.
    pub takes_copy: bool,
}

impl TargetTable {
    /// Whether rows of it may keep a version that is not that of the transaction which wrote them.
    pub(super) fn keeps_versions(&self) -> bool {
        !self.counters.is_empty() || self.collides()
    }

    /// Whether one statement may take many of its rows.
    pub(super) fn takes_many(&self) -> bool {
        self.columns.values().all(|column| column.reads_text)
    }

    /// Whether rows of different keys may collide.
    pub(super) fn collides(&self) -> bool {
        !self.uniques.constraints.is_empty() && !self.key.is_empty()
    }
}

/// Why a change cannot be written to the target's table.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ShapeError {
    /// The target's table has no such column.
    #[error("column {column} of {table} does not exist on the target; add it there")]
    MissingColumn {
        /// Schema and table.
        table: String,
        /// The column.
        column: String,
    },
    /// The target's table has a key column that the source's does not have.
    #[error(
        "primary key column {column} of {table} does not exist on the source; the primary keys must be the same"
    )]
    MissingKey {
        /// Schema and table.
        table: String,
        /// The column.
        column: String,
    },
    /// An UPDATE or DELETE of a table whose rows cannot be told apart.
    #[error("{table} has no primary key on the target; add one")]
    NoKey {
        /// Schema and table.
        table: String,
    },
}

pub(crate) use crate::tables::quote;

/// Schema and table, quoted.
pub(super) fn qualified(relation: &Relation) -> String {
    format!("{}.{}", quote(&relation.schema), quote(&relation.name))
}

/// Schema and table, quoted, as a string: what Tandem's own tables name a table by.
pub(super) fn literal(relation: &Relation) -> String {
    format!("'{}'", qualified(relation).replace('\'', "''"))
}

/// Writes statements for one link.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    /// Node id of the source: the origin of every change.
    pub(super) source: u16,
    /// SQL that turns an origin id (`v.roident`) of the target into a node id.
    pub(super) node_of: String,
}

impl Writer {
    /// `own` is the target's node id, `origins` its origin ids and the node ids they stand for.
    pub(super) fn new(source: u16, own: u16, origins: &HashMap<u32, u16>) -> Self {
        let node_of = node_of("v.roident", own, origins);
        Self { source, node_of }
    }

    /// An INSERT of rows. Where the table has a key it fails if the key is taken (division by zero); `guarded`: also if a
    /// delete is remembered for it, and a key that is taken is a unique violation.
    ///
    /// # Errors
    /// When the target's table does not have the columns.
    pub(super) fn insert(
        &self,
        relation: &Relation,
        table: &TargetTable,
        guarded: bool,
        rows: Rows,
    ) -> Result<Statement, ShapeError> {
        let mut params = Params::new(relation, table, rows);
        let all: Vec<_> = relation
            .columns
            .iter()
            .enumerate()
            .map(|(index, column)| {
                let is_written = !table.generated.contains(column);
                is_written.then(|| params.add(Source::New(index)))
            })
            .collect();
        let mut names = Vec::new();
        let mut values = Vec::new();
        for (column, value) in relation.columns.iter().zip(&all) {
            let Some(value) = value else { continue };
            if !table.columns.contains_key(column) {
                return Err(missing_column(relation, column));
            }
            names.push(quote(column));
            values.push(if guarded || !table.counters.contains(column) {
                value.clone()
            } else {
                let added = contribution(relation, column, &mut params);
                let rest = sum_of("(SELECT s.counters FROM s)", column);
                // The parameter itself is not used, but needs a type.
                format!("{added} + {rest} + 0 * coalesce({value}::numeric, 0)")
            });
        }
        let target = qualified(relation);
        let (names, values) = (names.join(", "), values.join(", "));
        if table.key.is_empty() {
            let list = if names.is_empty() {
                "DEFAULT VALUES".to_owned()
            } else {
                let from = params.rows("FROM");
                format!("({names}) OVERRIDING SYSTEM VALUE SELECT {values}{from}")
            };
            return Ok(params.statement(format!("INSERT INTO {target} {list}")));
        }
        let places = key_places(relation, table)?.into_iter();
        let key: Vec<_> = places
            .filter_map(|place| all.get(place).cloned()?)
            .collect();
        let key = key_array(&key);
        let condition = match (guarded, rows) {
            (false, _) => String::new(),
            (true, Rows::One) => {
                format!(" WHERE NOT EXISTS (SELECT {})", remembered(relation, &key))
            }
            // Whether there is any is asked once, not for each row.
            (true, Rows::Many) => format!(
                " WHERE (SELECT NOT EXISTS (SELECT FROM tandem.tombstone d WHERE d.relation = {})) OR NOT EXISTS (SELECT {})",
                literal(relation),
                remembered(relation, &key)
            ),
        };
        let rest = if guarded || table.counters.is_empty() {
            String::new()
        } else {
            let held = format!(
                "d.relation = {} AND d.key = {key} AND d.counters IS NOT NULL",
                literal(relation)
            );
            format!(
                "s AS MATERIALIZED (SELECT d.counters FROM tandem.tombstone d WHERE {held}), \
                 u AS (UPDATE tandem.tombstone d SET counters = NULL WHERE {held}), "
            )
        };
        // A key that is taken ends the fast path either way, and what is not speculative costs the server less
        // (src/backend/executor/nodeModifyTable.c, ExecInsert).
        let on_conflict = if guarded {
            String::new()
        } else {
            let key: Vec<_> = table.key.iter().map(|column| quote(column)).collect();
            format!(" ON CONFLICT ({}) DO NOTHING", key.join(", "))
        };
        let sql = format!(
            "WITH {rest}w AS (INSERT INTO {target} ({names}) OVERRIDING SYSTEM VALUE SELECT {values}{}{condition}{on_conflict} \
             RETURNING 1) {}",
            params.rows("FROM"),
            params.all_of_w()
        );
        Ok(params.statement(sql))
    }

    /// An UPDATE of rows under their old keys. `unchanged` says which columns the stream leaves out, `key_moves`
    /// whether the key itself is written; `versioned` adds the version's guard.
    ///
    /// # Errors
    /// When the target's table has no key, or not the columns.
    pub(super) fn update(
        &self,
        relation: &Relation,
        table: &TargetTable,
        unchanged: impl Fn(usize) -> bool,
        key_moves: bool,
        versioned: bool,
        rows: Rows,
    ) -> Result<Statement, ShapeError> {
        let mut params = Params::new(relation, table, rows);
        let mut sets = Vec::new();
        for (index, column) in relation.columns.iter().enumerate() {
            if unchanged(index)
                || table.fixed.contains(column)
                || table.generated.contains(column)
                || (!key_moves && table.key.contains(column))
            {
                continue;
            }
            if !table.columns.contains_key(column) {
                return Err(missing_column(relation, column));
            }
            let name = quote(column);
            if table.counters.contains(column) {
                let added = contribution(relation, column, &mut params);
                sets.push(format!("{name} = r.{name} + {added}"));
            } else {
                sets.push(format!("{name} = {}", params.add(Source::New(index))));
            }
        }
        if sets.is_empty() {
            // Nothing but the key: the row still gets this version.
            let column = table.key.first().ok_or_else(|| no_key(relation))?;
            sets.push(format!("{0} = r.{0}", quote(column)));
        }
        let mut condition = key_condition(relation, table, &mut params)?;
        if versioned {
            let timestamp = params.add(Source::Timestamp);
            let not_newer = self.surely_not_newer(relation, table, &timestamp);
            let _ = write!(condition, " AND {not_newer}");
            if (0..relation.columns.len()).any(&unchanged) {
                let _ = write!(condition, " AND {}", self.keeps_values(relation, table));
            }
        }
        let sql = format!(
            "WITH w AS (UPDATE ONLY {} AS r SET {}{} WHERE {condition} RETURNING 1) {}",
            qualified(relation),
            sets.join(", "),
            params.rows("FROM"),
            params.all_of_w()
        );
        Ok(params.statement(sql))
    }

    /// A DELETE of rows under their old keys, which are remembered unless `forget`; `versioned` adds the version's
    /// guard.
    ///
    /// # Errors
    /// When the target's table has no key, or not the source's.
    pub(super) fn delete(
        &self,
        relation: &Relation,
        table: &TargetTable,
        versioned: bool,
        forget: bool,
        rows: Rows,
    ) -> Result<Statement, ShapeError> {
        let mut params = Params::new(relation, table, rows);
        let mut condition = key_condition(relation, table, &mut params)?;
        let timestamp = params.add(Source::Timestamp);
        let deleted = params.add(Source::Last);
        if versioned {
            let not_newer = self.surely_not_newer(relation, table, &timestamp);
            let _ = write!(condition, " AND {not_newer}");
        } else {
            let _ = write!(condition, " AND {timestamp} IS NOT NULL");
        }
        let rest = if table.counters.is_empty() {
            "NULL::jsonb".to_owned()
        } else {
            rest(relation, table, &mut params)
        };
        let bury = if forget {
            String::new()
        } else {
            let bury = record(
                relation,
                table,
                "key",
                "deleted",
                self.source,
                "rest",
                "FROM w",
            );
            format!(", b AS ({bury})")
        };
        let sql = format!(
            "WITH w AS (DELETE FROM ONLY {} AS r{} WHERE {condition} RETURNING {} AS key, {deleted} AS deleted, {rest} AS rest)\
             {bury} {}",
            qualified(relation),
            params.rows("USING"),
            key_expressions(table),
            params.all_of_w()
        );
        Ok(params.statement(sql))
    }

    /// Locks the row under a change's key and tells its version, and its image where a conflict may need it.
    /// `by_new`: the key is the new row's.
    /// Columns: timestamp (microseconds since 2000-01-01, or NULL), node id, image as JSON or NULL, whether
    /// it is incomplete.
    ///
    /// # Errors
    /// When the target's table has no key, or not the source's.
    pub(super) fn lock(
        &self,
        relation: &Relation,
        table: &TargetTable,
        by_new: bool,
    ) -> Result<Statement, ShapeError> {
        let mut params = Params::one(relation, table);
        let condition = key_condition(relation, table, &mut params)?;
        let timestamp = params.add(Source::Timestamp);
        // Scalar expressions only: a function in FROM would keep its row from before the wait for the lock
        // (src/backend/executor/README, "EvalPlanQual": ROW_MARK_COPY).
        let written = self.written(relation, table);
        let image = if by_new {
            "true".to_owned()
        } else {
            format!("coalesce({written} >= {timestamp}, false)")
        };
        let sql = format!(
            "SELECT (extract(epoch FROM {written} - timestamptz '2000-01-01 00:00:00+00') * 1000000)::int8, {}, \
             CASE WHEN {image} AND {timestamp} IS NOT NULL THEN row_to_json(r.*)::text END, ({})::int FROM ONLY {} AS r WHERE {condition} FOR UPDATE",
            self.written_by(relation, table),
            incomplete(relation, table),
            qualified(relation)
        );
        let statement = params.statement(sql);
        Ok(if by_new {
            statement.by_new_key()
        } else {
            statement
        })
    }
}

/// The key of row `r` as Tandem's own tables have it.
pub(super) fn key_expressions(table: &TargetTable) -> String {
    let key: Vec<_> = table
        .key
        .iter()
        .map(|column| format!("r.{}", quote(column)))
        .collect();
    key_array(&key)
}

/// Where the columns of the key stand in the stream's rows.
pub(super) fn key_places(
    relation: &Relation,
    table: &TargetTable,
) -> Result<Vec<usize>, ShapeError> {
    if table.key.is_empty() {
        return Err(no_key(relation));
    }
    let place = |column: &String| {
        relation
            .columns
            .iter()
            .position(|name| name == column)
            .ok_or_else(|| ShapeError::MissingKey {
                table: format!("{}.{}", relation.schema, relation.name),
                column: column.clone(),
            })
    };
    table.key.iter().map(place).collect()
}

/// The old key as Tandem's own tables have it.
pub(super) fn key_param(
    relation: &Relation,
    table: &TargetTable,
    params: &mut Params<'_>,
) -> Result<String, ShapeError> {
    let places = key_places(relation, table)?.into_iter();
    let values: Vec<_> = places.map(|place| params.add(Source::Key(place))).collect();
    Ok(key_array(&values))
}

/// A key as Tandem's own tables have it, from SQL expressions of its values.
pub(super) fn key_array(values: &[String]) -> String {
    format!("jsonb_build_array({})", values.join(", "))
}

pub(super) fn key_condition(
    relation: &Relation,
    table: &TargetTable,
    params: &mut Params<'_>,
) -> Result<String, ShapeError> {
    let mut condition = String::new();
    for (number, (place, column)) in key_places(relation, table)?
        .into_iter()
        .zip(&table.key)
        .enumerate()
    {
        let value = params.add(Source::Key(place));
        let and = if condition.is_empty() { "" } else { " AND " };
        let equals = table.key_equals.get(number).map_or("=", String::as_str);
        let _ = write!(condition, "{and}r.{} {equals} {value}", quote(column));
    }
    Ok(condition)
}

pub(super) fn missing_column(relation: &Relation, column: &str) -> ShapeError {
    ShapeError::MissingColumn {
        table: format!("{}.{}", relation.schema, relation.name),
        column: column.to_owned(),
    }
}

fn no_key(relation: &Relation) -> ShapeError {
    ShapeError::NoKey {
        table: format!("{}.{}", relation.schema, relation.name),
    }
}

/// What a prepared statement is kept under.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct StatementKey {
    /// [`Relation::id`].
    pub relation: u64,
    /// What it does.
    pub kind: Kind,
    /// Which columns the stream leaves out, a bit each; empty when it leaves out none.
    pub unchanged: Vec<u64>,
}

/// The kinds of statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Of the fast path: guarded by the version.
    Guarded(Operation),
    /// The same, for many rows at once.
    Folded(Operation),
    /// Of the slow path: the decision was made under the row's lock. The flag says whether the key moves.
    Decided(Operation, bool),
    /// The lock itself. The flag says whether the new row's key is meant.
    Lock(bool),
    /// What delete is remembered. The flag as with the lock.
    Remembered(bool),
    /// The row under the new key gets the new values.
    Replace,
    /// Remembers a delete.
    Bury,
    /// New rows by COPY.
    Copy,
    /// What is checked before.
    CopyGuard,
    /// Of runs: remembers deletes of many rows that came and went.
    BuryUnseen,
    /// Notes that the row lacks what an update left out.
    Mark,
    /// Notes that it does not any more.
    Unmark,
    /// Deletes a row that is older than a delete of the node's own.
    Judge,
    /// Of the fast path: adds a contribution, whether the row is newer or not.
    Merging,
    /// Adds a contribution to a row that is newer.
    Contribute,
    /// The same for the row under the new key.
    ContributeNew,
    /// Adds a contribution to a remembered delete.
    BuryContribution,
    /// The same under the new key.
    BuryContributionNew,
    /// Moves what a remembered delete holds into the row that came after it.
    Reclaim,
}

#[cfg(test)]
mod tests {
    use super::*;
    fn relation(columns: &[&str]) -> std::sync::Arc<Relation> {
        let mut bytes = b"R\0\0\0\x01public\0we\"ird\0d".to_vec();
        bytes.extend(u16::try_from(columns.len()).expect("few").to_be_bytes());
        for column in columns {
            bytes.push(0);
            bytes.extend(column.as_bytes());
            bytes.extend([0; 9]);
        }
        crate::relation::Interner::default()
            .intern(&bytes)
            .expect("a shape")
    }

    fn text() -> TargetColumn {
        TargetColumn {
            type_oid: 25,
            type_name: "pg_catalog.text".to_owned(),
            reads_text: true,
        }
    }

    fn table(key: &[&str], columns: &[&str]) -> TargetTable {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        TargetTable {
            gone: false,
            key: owned(key),
            key_is_plain: true,
            key_equals: Vec::new(),
            fixed: Vec::new(),
            generated: Vec::new(),
            counters: Vec::new(),
            resolver: Resolver::default(),
            uniques: Uniques::default(),
            columns: owned(columns)
                .into_iter()
                .map(|column| (column, text()))
                .collect(),
            deferrable: false,
            truncates_by_row: false,
            takes_copy: true,
        }
    }

    fn writer() -> Writer {
        Writer::new(2, 1, &HashMap::from([(7, 2), (9, 3)]))
    }

    #[test]
    fn identifiers_are_quoted() {
        let statement = writer()
            .insert(
                &relation(&["id"]),
                &table(&["id"], &["id"]),
                true,
                Rows::One,
            )
            .expect("fits");
        assert!(
            statement.sql.contains(r#""public"."we""ird""#),
            "{}",
            statement.sql
        );
    }

    #[test]
    fn an_update_leaves_out_the_key_and_what_did_not_change() {
        let statement = writer()
            .update(
                &relation(&["id", "a", "big"]),
                &table(&["id"], &["id", "a", "big"]),
                |index| index == 2,
                false,
                true,
                Rows::One,
            )
            .expect("fits");
        assert_eq!(
            statement.params,
            [Source::New(1), Source::Key(0), Source::Timestamp]
        );
        assert!(
            statement
                .sql
                .contains(r#"SET "a" = $1 WHERE r."id" = $2 AND"#),
            "{}",
            statement.sql
        );
        assert!(
            statement
                .sql
                .contains("CASE v.roident WHEN 7 THEN 2 WHEN 9 THEN 3 ELSE 1 END FROM pg_xact_commit_timestamp_origin(r.xmin) v) <= 2"),
            "{}",
            statement.sql
        );
    }

    #[test]
    fn a_column_that_the_target_lacks_is_named() {
        let error = writer()
            .insert(
                &relation(&["id", "status"]),
                &table(&["id"], &["id"]),
                true,
                Rows::One,
            )
            .expect_err("no column");
        assert!(
            error
                .to_string()
                .contains("column status of public.we\"ird does not exist on the target"),
            "{error}"
        );
    }

    #[test]
    fn a_table_without_a_key_takes_inserts_only() {
        let bare = table(&[], &["id"]);
        let insert = writer()
            .insert(&relation(&["id"]), &bare, true, Rows::One)
            .expect("fits");
        assert!(!insert.sql.contains("ON CONFLICT"), "{}", insert.sql);
        assert!(matches!(
            writer().delete(&relation(&["id"]), &bare, true, false, Rows::One),
            Err(ShapeError::NoKey { .. })
        ));
    }
}
