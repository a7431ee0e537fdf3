//! Statements for tables with counters: columns whose value is a sum of contributions (see `conflict/counter.rs`).
//!
//! What a deleted row leaves of its counters stands in `tandem.tombstone.counters`, an object of sums; NULL where all
//! are zero. A row that a contribution was added to although it is newer keeps its version in `tandem.kept`.

use super::kept::keep;
use super::params::{Params, Source, Statement};
use super::sql::{
    ShapeError, TargetTable, Writer, key_condition, key_expressions, key_param, literal, qualified,
    quote,
};
use crate::relation::Relation;

/// An object of sums, `values` giving the counters' in their order; NULL where all are zero.
fn sums(table: &TargetTable, values: &[String]) -> String {
    let object = |values: &mut dyn Iterator<Item = &str>| {
        let pairs: Vec<_> = table
            .counters
            .iter()
            .zip(values)
            .map(|(name, value)| format!("'{}', {value}", name.replace('\'', "''")))
            .collect();
        format!("jsonb_build_object({})", pairs.join(", "))
    };
    let sums = object(&mut values.iter().map(String::as_str));
    format!("nullif({sums}, {})", object(&mut std::iter::repeat("0")))
}

/// What `value` gives for each counter.
fn each(table: &TargetTable, value: impl FnMut(&String) -> String) -> Vec<String> {
    table.counters.iter().map(value).collect()
}

/// The sum that an object of sums, an SQL expression, has of a counter.
pub(super) fn sum_of(object: &str, counter: &str) -> String {
    let name = counter.replace('\'', "''");
    format!("coalesce(({object}->>'{name}')::numeric, 0)")
}

/// Where a counter stands in the stream's rows.
fn place_of(relation: &Relation, counter: &str) -> usize {
    let place = relation.columns.iter().position(|name| name == counter);
    // A counter that the stream does not have gets no contributions: past the end reads as zero.
    place.unwrap_or(usize::MAX)
}

/// SQL of what a change adds to a counter.
pub(super) fn contribution(relation: &Relation, counter: &str, params: &mut Params<'_>) -> String {
    let place = place_of(relation, counter);
    let (gain, base) = (
        params.add(Source::Gain(place)),
        params.add(Source::Base(place)),
    );
    format!("{gain} - {base}")
}

/// What is left of row `r` once the change's contribution is in it.
pub(super) fn rest(relation: &Relation, table: &TargetTable, params: &mut Params<'_>) -> String {
    let values = each(table, |name| {
        let added = contribution(relation, name, params);
        format!("r.{}::numeric + {added}", quote(name))
    });
    sums(table, &values)
}

/// The same of a row that goes with all that it has.
pub(super) fn whole_rest(table: &TargetTable) -> String {
    sums(
        table,
        &each(table, |name| format!("r.{}::numeric", quote(name))),
    )
}

/// SET of an ON CONFLICT clause for a tombstone `d`: the newer version, and both sums.
pub(super) fn add_up(table: &TargetTable) -> String {
    let both = each(table, |name| {
        let (kept, added) = (
            sum_of("d.counters", name),
            sum_of("excluded.counters", name),
        );
        format!("{kept} + {added}")
    });
    let newer = "(d.deleted, d.node) < (excluded.deleted, excluded.node)";
    format!(
        "deleted = CASE WHEN {newer} THEN excluded.deleted ELSE d.deleted END, \
         node = CASE WHEN {newer} THEN excluded.node ELSE d.node END, \
         id = CASE WHEN {newer} THEN excluded.id ELSE d.id END, counters = {}",
        sums(table, &both)
    )
}

impl Writer {
    /// Adds an UPDATE's contribution to the row under the old key. `judged`: the row is known to be newer, and keeps all
    /// else. Otherwise it gets the change's other values and its version if it is not newer.
    ///
    /// # Errors
    /// When the target's table has no key, or not the columns.
    pub(super) fn merge(
        &self,
        relation: &Relation,
        table: &TargetTable,
        judged: bool,
    ) -> Result<Statement, ShapeError> {
        let mut params = Params::one(relation, table);
        let condition = key_condition(relation, table, &mut params)?;
        let yields = if judged {
            "false".to_owned()
        } else {
            let timestamp = params.add(Source::Timestamp);
            self.not_newer(relation, table, &timestamp)
        };
        let mut sets = Vec::new();
        for (index, column) in relation.columns.iter().enumerate() {
            let name = quote(column);
            if table.counters.contains(column) {
                let added = contribution(relation, column, &mut params);
                sets.push(format!("{name} = r.{name} + {added}"));
            } else if !judged
                && !table.fixed.contains(column)
                && !table.generated.contains(column)
                && !table.key.contains(column)
            {
                let value = params.add(Source::New(index));
                sets.push(format!(
                    "{name} = CASE WHEN o.yields THEN {value} ELSE r.{name} END"
                ));
            }
        }
        let target = qualified(relation);
        // The row is found by its place: its version is known only from before the update.
        let sql = format!(
            "WITH o AS MATERIALIZED (SELECT r.ctid AS place, {} AS written, {} AS node, {yields} AS yields \
             FROM ONLY {target} AS r WHERE {condition} FOR UPDATE), \
             w AS (UPDATE ONLY {target} AS r SET {} FROM o WHERE r.ctid = o.place \
             RETURNING {} AS key, o.written, o.node, o.yields), k AS ({}) SELECT 1 / count(*) FROM w",
            self.written(relation, table),
            self.written_by(relation, table),
            sets.join(", "),
            key_expressions(table),
            keep(relation, "w WHERE NOT yields"),
        );
        Ok(params.statement(sql))
    }

    /// Adds a change's contribution to the delete that is remembered for its key, which is remembered with the change's
    /// version if it was not.
    ///
    /// # Errors
    /// When the target's table has no key, or not the source's.
    pub(super) fn bury_contribution(
        &self,
        relation: &Relation,
        table: &TargetTable,
    ) -> Result<Statement, ShapeError> {
        let mut params = Params::one(relation, table);
        let key = key_param(relation, table, &mut params)?;
        let timestamp = params.add(Source::Timestamp);
        let added = each(table, |name| contribution(relation, name, &mut params));
        let added = sums(table, &added);
        let sql = format!(
            "INSERT INTO tandem.tombstone AS d (relation, key, deleted, node, counters) \
             SELECT {}, {key}, {timestamp}, {}, {added} ON CONFLICT (relation, key) DO UPDATE SET {}",
            literal(relation),
            self.source,
            add_up(table)
        );
        Ok(params.statement(sql))
    }

    /// Moves what a remembered delete holds into the row that the node's own client has inserted under its key since. Fails
    /// (division by zero) where a client changes that row at the moment.
    ///
    /// # Errors
    /// When the target's table has no key, or not the source's.
    pub(super) fn reclaim(
        &self,
        relation: &Relation,
        table: &TargetTable,
    ) -> Result<Statement, ShapeError> {
        let mut params = Params::one(relation, table);
        let condition = key_condition(relation, table, &mut params)?;
        let key = key_param(relation, table, &mut params)?;
        let sets = each(table, |counter| {
            let name = quote(counter);
            format!("{name} = r.{name} + {}", sum_of("o.counters", counter))
        });
        let target = qualified(relation);
        let sql = format!(
            "WITH o AS MATERIALIZED (SELECT r.ctid AS place, {} AS written, {} AS node, d.counters FROM ONLY {target} AS r, \
             tandem.tombstone d WHERE {condition} AND d.relation = {} AND d.key = {key} \
             AND d.counters IS NOT NULL FOR UPDATE), w AS (UPDATE ONLY {target} AS r SET {} FROM o WHERE r.ctid = o.place \
             RETURNING {} AS key, o.written, o.node), k AS ({}), \
             u AS (UPDATE tandem.tombstone d SET counters = NULL FROM w WHERE d.relation = {} AND d.key = w.key) \
             SELECT 1 / (NOT EXISTS (SELECT FROM o) OR EXISTS (SELECT FROM w))::int",
            self.written(relation, table),
            self.written_by(relation, table),
            literal(relation),
            sets.join(", "),
            key_expressions(table),
            keep(relation, "w WHERE written IS NOT NULL"),
            literal(relation),
        );
        Ok(params.statement(sql).by_new_key())
    }
}
