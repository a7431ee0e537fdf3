//! Secondary unique and exclusion constraints of a target's table, and the SQL that finds rows which collide on them.
//!
//! An *image* is a row as a JSON object of its columns' text forms.

use super::kept::keep;
use super::load::Asked;
use super::session::ApplyError;
use super::sql::{TargetTable, Writer, key_expressions, literal, qualified, quote};
use crate::conflict::ConflictType;
use crate::relation::Relation;
use crate::version::microseconds_sql;

/// A unique or exclusion constraint, or a unique index, besides the primary key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unique {
    /// Expressions over the table's columns, and the operator under which two rows collide if it holds for all of them.
    parts: Vec<(String, String)>,
    /// NULLS NOT DISTINCT.
    nulls_collide: bool,
    /// Of a partial index.
    predicate: Option<String>,
}

/// What it takes to compare rows of a table that are not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Uniques {
    /// The constraints; empty where the primary key is the only one.
    pub(super) constraints: Vec<Unique>,
    /// Columns that are stored, and their types.
    columns: Vec<(String, String)>,
    /// Generated columns, and their expressions.
    generated: Vec<(String, String)>,
}

impl Uniques {
    /// Reads them from the catalog of the table's node.
    ///
    /// # Errors
    /// When the node cannot be asked.
    pub(super) async fn load(
        asked: &mut Asked<'_>,
        relation: &Relation,
    ) -> Result<Self, ApplyError> {
        let name = literal(relation);
        let sql = format!(
            "SELECT json_build_array(\
             ARRAY(SELECT pg_get_indexdef(i.indexrelid, n, true) FROM generate_series(1, i.indnkeyatts) n ORDER BY n), \
             ARRAY(SELECT coalesce((SELECT format(' COLLATE %I.%I', s.nspname, o.collname) FROM pg_collation o \
                 JOIN pg_namespace s ON s.oid = o.collnamespace WHERE o.oid = i.indcollation[n - 1]), '') \
               FROM generate_series(1, i.indnkeyatts) n ORDER BY n), \
             ARRAY(SELECT (SELECT format('OPERATOR(%I.%s)', s.nspname, p.oprname) FROM pg_operator p \
                 JOIN pg_namespace s ON s.oid = p.oprnamespace WHERE p.oid = coalesce(x.conexclop[n], \
                   (SELECT a.amopopr FROM pg_opclass o JOIN pg_amop a ON a.amopfamily = o.opcfamily \
                      AND a.amoplefttype = o.opcintype AND a.amoprighttype = o.opcintype AND a.amopstrategy = 3 \
                    WHERE o.oid = i.indclass[n - 1]))) \
               FROM generate_series(1, i.indnkeyatts) n ORDER BY n), \
             i.indnullsnotdistinct, pg_get_expr(i.indpred, i.indrelid, true))::text \
             FROM pg_index i LEFT JOIN pg_constraint x ON x.conindid = i.indexrelid AND x.contype = 'x' \
             WHERE i.indrelid = to_regclass({name}) AND (i.indisunique OR i.indisexclusion) AND NOT i.indisprimary AND i.indisready"
        );
        type Index = (Vec<String>, Vec<String>, Vec<String>, bool, Option<String>);
        let mut constraints = Vec::new();
        for (expressions, collations, operators, nulls_collide, predicate) in
            asked.ask::<Index>(&sql).await?
        {
            let expressions = expressions.into_iter().zip(collations);
            let expressions = expressions.map(|(part, collation)| format!("({part}){collation}"));
            constraints.push(Unique {
                parts: expressions.zip(operators).collect(),
                nulls_collide,
                predicate,
            });
        }
        let mut uniques = Self {
            constraints,
            ..Self::default()
        };
        if uniques.constraints.is_empty() {
            return Ok(uniques);
        }
        let sql = format!(
            "SELECT json_build_array(a.attname::text, format_type(a.atttypid, a.atttypmod), \
             CASE WHEN a.attgenerated <> '' THEN pg_get_expr(d.adbin, d.adrelid, true) END)::text \
             FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
             WHERE a.attrelid = to_regclass({name}) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
        );
        for (column, kind, expression) in
            asked.ask::<(String, String, Option<String>)>(&sql).await?
        {
            match expression {
                Some(expression) => uniques.generated.push((column, expression)),
                None => uniques.columns.push((column, kind)),
            }
        }
        Ok(uniques)
    }

    /// The type of a column, as SQL.
    pub(super) fn type_of(&self, column: &str) -> &str {
        let found = self.columns.iter().find(|(name, _)| name == column);
        found.map_or("text", |(_, kind)| kind)
    }

    /// A subquery of one row: the row of an image.
    fn row_of(&self, image: &str) -> String {
        let columns: Vec<_> = self
            .columns
            .iter()
            .map(|(name, kind)| format!("({image}->>{})::{kind} AS {}", text(name), quote(name)))
            .collect();
        let columns = columns.join(", ");
        if self.generated.is_empty() {
            return format!("(SELECT {columns})");
        }
        let generated: Vec<_> = self
            .generated
            .iter()
            .map(|(name, expression)| format!("({expression}) AS {}", quote(name)))
            .collect();
        let generated = generated.join(", ");
        format!("(SELECT q.*, {generated} FROM (SELECT {columns}) q)")
    }

    /// The image of row `r`.
    fn image(&self) -> String {
        let columns: Vec<_> = self
            .columns
            .iter()
            .map(|(name, _)| format!("({}, r.{}::text)", text(name), quote(name)))
            .collect();
        let values = columns.join(", ");
        format!("(SELECT jsonb_object_agg(x.name, x.value) FROM (VALUES {values}) x(name, value))")
    }
}

/// A string as SQL.
pub(super) fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// The version that rows have which the transaction being applied has written: SQL of a timestamp, and the node.
#[derive(Debug, Clone)]
pub(super) struct Stamp {
    pub(super) timestamp: String,
    pub(super) node: u16,
}

impl Writer {
    /// A FROM clause that gives, for an image, the rows `c` of the table which collide with it: place, key, image, written,
    /// node. A row under the image's own key does not.
    fn collisions(
        &self,
        relation: &Relation,
        table: &TargetTable,
        image: &str,
        stamp: &Stamp,
        rest: &str,
    ) -> String {
        let uniques = &table.uniques;
        let mut values = Vec::new();
        let mut conditions = Vec::new();
        for unique in &uniques.constraints {
            let mut parts = Vec::new();
            for (expression, operator) in &unique.parts {
                let value = format!("v{}", values.len());
                let nulls = if unique.nulls_collide {
                    format!(" OR (({expression}) IS NULL AND nv.{value} IS NULL)")
                } else {
                    String::new()
                };
                parts.push(format!("(({expression}) {operator} nv.{value}{nulls})"));
                values.push(format!("({expression}) AS {value}"));
            }
            if let Some(predicate) = &unique.predicate {
                let value = format!("v{}", values.len());
                parts.push(format!("({predicate}) AND nv.{value}"));
                values.push(format!("({predicate}) AS {value}"));
            }
            conditions.push(format!("({})", parts.join(" AND ")));
        }
        let key = key_expressions(table);
        let (written, node) = (
            self.written(relation, table),
            self.written_by(relation, table),
        );
        let ours = "r.xmin = pg_current_xact_id()::xid";
        format!(
            "{} n CROSS JOIN LATERAL (SELECT {} FROM (SELECT n.*) q) nv CROSS JOIN LATERAL (SELECT r.ctid AS place, {key} AS key, \
             {} AS image, coalesce({written}, CASE WHEN {ours} THEN {} ELSE '1970-01-01 00:00:00+00' END) AS written, \
             CASE WHEN {ours} AND {written} IS NULL THEN {} ELSE {node} END AS node FROM ONLY {} AS r \
             WHERE ({}) AND {key} <> {}{rest}) c",
            uniques.row_of(image),
            values.join(", "),
            uniques.image(),
            stamp.timestamp,
            stamp.node,
            qualified(relation),
            conditions.join(" OR "),
            key.replace("r.", "n."),
        )
    }

    /// Moves the rows that collide with an image into the shadow. Columns: key, image, timestamp in microseconds since
    /// 2000-01-01, node. `except`: a key whose row stays.
    pub(super) fn evict(
        &self,
        relation: &Relation,
        table: &TargetTable,
        image: &str,
        except: Option<&str>,
        stamp: &Stamp,
    ) -> String {
        let image = format!("{}::jsonb", text(image));
        let except = except.map_or_else(String::new, |key| {
            format!(" AND {} <> {}::jsonb", key_expressions(table), text(key))
        });
        let rest = format!("{except} FOR UPDATE");
        let collisions = self.collisions(relation, table, &image, stamp, &rest);
        format!(
            "WITH c AS MATERIALIZED (SELECT c.* FROM {collisions}), \
             d AS (DELETE FROM ONLY {} AS r USING c WHERE r.ctid = c.place RETURNING c.key, c.image, c.written, c.node), \
             s AS (INSERT INTO tandem.shadow (relation, key, image, written, node) SELECT {}, key, image, written, node FROM d \
             ON CONFLICT (relation, key) DO UPDATE SET image = excluded.image, written = excluded.written, node = excluded.node \
             WHERE (tandem.shadow.written, tandem.shadow.node) < (excluded.written, excluded.node)) \
             SELECT key::text, image::text, {}, node FROM d",
            qualified(relation),
            literal(relation),
            microseconds_sql("written"),
        )
    }

    /// Every shadowed row of the table, from the newest to the oldest, once for each row that it collides with, or once.
    /// Columns: key, its version (timestamp, node), the other's version.
    pub(super) fn shadowed(
        &self,
        relation: &Relation,
        table: &TargetTable,
        stamp: &Stamp,
    ) -> String {
        let collisions = self.collisions(relation, table, "h.image", stamp, "");
        format!(
            "SELECT h.key::text, {}, h.node, {}, c.node FROM tandem.shadow h LEFT JOIN LATERAL (SELECT c.* FROM {collisions}) c ON true \
             WHERE h.relation = {} ORDER BY h.written DESC, h.node DESC, h.key",
            microseconds_sql("h.written"),
            microseconds_sql("c.written"),
            literal(relation),
        )
    }

    /// The shadowed row under a key, if there is one. Columns: image, timestamp in microseconds since 2000-01-01, node.
    pub(super) fn shadow_image(relation: &Relation, key: &str) -> String {
        format!(
            "SELECT image::text, {}, node FROM tandem.shadow WHERE relation = {} AND key = {}::jsonb",
            microseconds_sql("written"),
            literal(relation),
            text(key)
        )
    }

    /// Where a key has a row in the table and one in the shadow, because a client has taken it anew: statements that end the
    /// shadowed one if it is not newer, and otherwise the one in the table.
    pub(super) fn judge_shadowed(&self, relation: &Relation, table: &TargetTable) -> [String; 2] {
        let conditions: Vec<_> = table
            .key
            .iter()
            .enumerate()
            .map(|(place, column)| {
                let equals = table.key_equals.get(place).map_or("=", String::as_str);
                let kind = table.uniques.type_of(column);
                format!("r.{} {equals} (h.key->>{place})::{kind}", quote(column))
            })
            .collect();
        let (own, conditions) = (qualified(relation), conditions.join(" AND "));
        let shadowed = format!("h.relation = {}", literal(relation));
        let (written, node) = (
            self.written(relation, table),
            self.written_by(relation, table),
        );
        let name = text(&format!("{}.{}", relation.schema, relation.name));
        let line = |local: &str, remote: &str, outcome: &str| {
            format!(
                "INSERT INTO tandem.conflict (relation, type, resolver, outcome, {local}_image, {local}_timestamp, {local}_node, \
                 {remote}_image, {remote}_timestamp, {remote}_node) SELECT {name}, 'multiple_unique_conflicts', 'last_update_wins', '{outcome}', \
                 image, written, node, other_image, other_written, other_node FROM d"
            )
        };
        [
            format!(
                "WITH d AS (DELETE FROM tandem.shadow h USING ONLY {own} AS r WHERE {shadowed} AND {conditions} \
                 AND (h.written, h.node) <= ({written}, {node}) RETURNING h.image, h.written, h.node, {} AS other_image, \
                 {written} AS other_written, {node} AS other_node) {}",
                table.uniques.image(),
                line("remote", "local", "local"),
            ),
            format!(
                "WITH d AS (DELETE FROM ONLY {own} AS r USING tandem.shadow h WHERE {shadowed} AND {conditions} \
                 RETURNING {} AS image, {written} AS written, {node} AS node, h.image AS other_image, h.written AS other_written, \
                 h.node AS other_node) {}",
                table.uniques.image(),
                line("local", "remote", "remote"),
            ),
        ]
    }

    /// Ends the shadowed row under a key if it is older than a delete of the node's own, and logs it.
    pub(super) fn bury_shadowed(relation: &Relation, key: &str, stamp: &Stamp) -> String {
        format!(
            "WITH d AS (DELETE FROM tandem.shadow h WHERE h.relation = {} AND h.key = {}::jsonb \
             AND (h.written, h.node) < ({timestamp}, {node}) RETURNING h.*) \
             INSERT INTO tandem.conflict (relation, type, resolver, outcome, local_timestamp, local_node, remote_image, \
             remote_timestamp, remote_node) SELECT {}, '{}', 'last_update_wins', 'local', {timestamp}, {node}, image, written, node \
             FROM d",
            literal(relation),
            text(key),
            text(&format!("{}.{}", relation.schema, relation.name)),
            ConflictType::InsertDeleted.name(),
            timestamp = stamp.timestamp,
            node = stamp.node,
        )
    }

    /// Puts the shadowed row under a key into the table; it keeps its version.
    pub(super) fn restore(&self, relation: &Relation, table: &TargetTable, key: &str) -> String {
        let columns: Vec<_> = table
            .uniques
            .columns
            .iter()
            .map(|(name, _)| quote(name))
            .collect();
        let columns = columns.join(", ");
        format!(
            "WITH s AS (DELETE FROM tandem.shadow h WHERE h.relation = {} AND h.key = {}::jsonb RETURNING h.*), \
             i AS (INSERT INTO {} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM (SELECT n.* FROM s, LATERAL {} n) n), \
             k AS ({}) SELECT count(*) FROM s",
            literal(relation),
            text(key),
            qualified(relation),
            table.uniques.row_of("s.image"),
            keep(relation, "s"),
        )
    }
}
