//! The SQL that a comparison asks of one node. Every parameter is text.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::plan::NodeTable;
use crate::apply::quote;
use crate::origin::node_of;
use crate::version::microseconds_sql;

/// SQL of a row's version, and of what was written before replication began.
#[derive(Debug, Clone)]
pub(super) struct RowVersion {
    /// Over row `r`: a value that says which transaction wrote it.
    written: &'static str,
    /// Over `s`: when, or the version that `tandem.kept` says the row kept; NULL beyond the commit-timestamp horizon.
    timestamp: &'static str,
    /// Over `s`: the node id.
    node: String,
    /// Over `s.written`: from when on versions of that node are the same everywhere.
    since: String,
}

impl RowVersion {
    /// The version of a row as the apply sessions know it (`apply/sql.rs`), on the node `own` with these origins.
    /// `since` says for each node id from when on its versions are the same on all nodes, as texts of timestamps of which
    /// the latest counts: when its changes began to be replicated, because each node has its own version of rows that were
    /// there before, and what runs have stamped.
    pub(super) fn new(
        own: u16,
        origins: &HashMap<u32, u16>,
        since: &HashMap<u16, Vec<String>>,
    ) -> Self {
        let roident = "(s.written).roident";
        let node = format!("coalesce(s.kept_node, {})", node_of(roident, own, origins));
        let begin = |node| {
            let texts = since.get(node).into_iter().flatten();
            let texts: Vec<_> = texts
                .map(|text| format!("timestamptz '{}'", text.replace('\'', "''")))
                .collect();
            match texts.as_slice() {
                [] => "timestamptz '-infinity'".to_owned(),
                [one] => one.clone(),
                several => format!("greatest({})", several.join(", ")),
            }
        };
        let mut ids: Vec<_> = origins.iter().collect();
        ids.sort();
        let mut since = format!("CASE {roident}");
        for (id, node) in ids {
            let _ = write!(since, " WHEN {id} THEN {}", begin(node));
        }
        let _ = write!(since, " ELSE {} END", begin(&own));
        Self {
            written: "pg_xact_commit_timestamp_origin(r.xmin)",
            timestamp: "coalesce(s.kept, (s.written).timestamp)",
            node,
            since,
        }
    }

    fn counts(&self) -> String {
        format!("coalesce({} >= {}, false)", self.timestamp, self.since)
    }
}

/// Part of a table: rows whose leading key columns are at least `lower` and below `upper`. Open where there is none, so
/// that rows which only some nodes have are in a range, too.
#[derive(Debug, Clone, Default)]
pub(super) struct Range {
    /// Values of the ranged columns as text.
    pub(super) lower: Option<Vec<String>>,
    /// See `lower`.
    pub(super) upper: Option<Vec<String>>,
}

/// A query with its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    /// Its text.
    pub(super) sql: String,
    /// Its parameters.
    pub(super) params: Vec<String>,
}

/// Hashes a text. Equal bytes give equal hashes on every node, whatever its collations.
fn hash(text: &str, seed: u8) -> String {
    format!("hashtextextended({text} COLLATE \"C\", {seed})")
}

/// The seed of the hash that puts rows into buckets: not one of those that are summed.
const PLACE_SEED: u8 = 2;

/// All columns of row `r` in the order of their names, which is the same on every node.
fn content(table: &NodeTable) -> String {
    let columns: Vec<_> = table
        .columns
        .iter()
        .map(|column| format!("r.{}", quote(&column.name)))
        .collect();
    format!("ROW({})::text", columns.join(", "))
}

fn key_columns(table: &NodeTable) -> Vec<String> {
    let column = |column: &super::plan::KeyColumn| format!("r.{}", quote(&column.name));
    table.key.iter().map(column).collect()
}

/// SQL that is true for row `r` with the key in the JSON array `json`.
fn key_is(table: &NodeTable, json: &str) -> String {
    let conditions: Vec<_> = table
        .key
        .iter()
        .enumerate()
        .map(|(place, column)| {
            format!(
                "r.{} {} ({json}->>{place})::{}",
                quote(&column.name),
                column.equals,
                column.data_type
            )
        })
        .collect();
    conditions.join(" AND ")
}

/// The key in the JSON array `json`, as `tandem.tombstone` names it.
fn remembered_key(table: &NodeTable, json: &str) -> String {
    let values: Vec<_> = table
        .key
        .iter()
        .enumerate()
        .map(|(place, column)| format!("({json}->>{place})::{}", column.data_type))
        .collect();
    format!("jsonb_build_array({})", values.join(", "))
}

/// Writes queries for one table on one node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker<'a> {
    /// The table as the node has it.
    pub(super) table: &'a NodeTable,
    /// The node's versions.
    pub(super) version: &'a RowVersion,
}

impl Asker<'_> {
    /// The rows `r` of a table as `s`, each expression computed once (OFFSET 0 keeps the planner from pulling it up).
    fn rows(&self, condition: &str) -> String {
        let place = if self.table.key.is_empty() {
            content(self.table)
        } else {
            format!("ROW({})::text", key_columns(self.table).join(", "))
        };
        let key: Vec<_> = key_columns(self.table)
            .into_iter()
            .map(|column| format!("{column}::text"))
            .collect();
        format!(
            "(SELECT {} AS content, ARRAY[{}]::text[] AS key, {} AS place, r.xmin::text AS xmin, {} AS written, \
             k.written AS kept, k.node AS kept_node FROM ONLY {} AS r LEFT JOIN tandem.kept AS k ON k.relation = {} \
             AND k.key = jsonb_build_array({}) AND k.writer = r.xmin{condition} OFFSET 0) AS s",
            content(self.table),
            key.join(", "),
            hash(&place, PLACE_SEED),
            self.version.written,
            self.table.qualified(),
            self.table.literal(),
            key_columns(self.table).join(", "),
        )
    }

    /// A comparison of the first key columns with as many values, which are added to `params`.
    fn compare(&self, operator: &str, values: &[String], params: &mut Vec<String>) -> String {
        let columns = key_columns(self.table);
        let columns: Vec<_> = columns.into_iter().take(values.len()).collect();
        let mut places = Vec::new();
        for (value, column) in values.iter().zip(&self.table.key) {
            params.push(value.clone());
            places.push(format!("(${}::text)::{}", params.len(), column.data_type));
        }
        format!(
            "({}) {operator} ({})",
            columns.join(", "),
            places.join(", ")
        )
    }

    /// The condition of a range, its parameters added to `params`.
    fn within(&self, range: &Range, params: &mut Vec<String>) -> String {
        let lower = range.lower.iter().map(|bound| (">=", bound));
        let upper = range.upper.iter().map(|bound| ("<", bound));
        let conditions: Vec<_> = lower
            .chain(upper)
            .map(|(operator, bound)| self.compare(operator, bound, params))
            .collect();
        if conditions.is_empty() {
            String::new()
        } else {
            format!(" WHERE {}", conditions.join(" AND "))
        }
    }

    /// The key at which a range that begins at `lower` shall end, so that it has about `rows` rows. No row: it has no
    /// end. `ranged` is the number of key columns that make ranges.
    pub(super) fn boundary(&self, lower: Option<&[String]>, ranged: usize, rows: u32) -> Query {
        let columns: Vec<_> = key_columns(self.table).into_iter().take(ranged).collect();
        let texts: Vec<_> = columns
            .iter()
            .map(|column| format!("{column}::text"))
            .collect();
        let mut params = Vec::new();
        // Strictly behind its beginning: many rows may share the leading columns.
        let condition = lower.map_or_else(String::new, |lower| {
            format!(" WHERE {}", self.compare(">", lower, &mut params))
        });
        let sql = format!(
            "SELECT ARRAY[{}]::text[] FROM ONLY {} AS r{condition} ORDER BY {} OFFSET {rows} LIMIT 1",
            texts.join(", "),
            self.table.qualified(),
            columns.join(", "),
        );
        Query { sql, params }
    }

    /// Counts and sums per bucket. Columns: bucket, rows, two sums of hashes over content and version (of a table
    /// without a key: over its content) as text. Sums, because equal rows must not cancel each other out.
    pub(super) fn digest(&self, range: &Range, buckets: i64) -> Query {
        let mut params = vec![(buckets - 1).to_string()];
        let condition = self.within(range, &mut params);
        let version = if self.table.key.is_empty() {
            String::new()
        } else {
            format!(
                " || CASE WHEN {} THEN {}::text || '@' || ({})::text ELSE '' END",
                self.version.counts(),
                self.version.timestamp,
                self.version.node
            )
        };
        let sql = format!(
            "SELECT q.place & $1::text::int8, count(*), sum({})::text, sum({})::text FROM (SELECT s.place, \
             s.content{version} AS x FROM {} OFFSET 0) AS q GROUP BY 1",
            hash("q.x", 0),
            hash("q.x", 1),
            self.rows(&condition),
        );
        Query { sql, params }
    }

    /// What [`State`](super::state::State) needs of the row `s`: content (two columns), timestamp, node, whether the
    /// version counts, xmin.
    fn state(&self) -> String {
        format!(
            "{}, {}, {}, ({})::int4, {}, s.xmin",
            hash("s.content", 0),
            hash("s.content", 1),
            microseconds_sql(self.version.timestamp),
            self.version.node,
            self.version.counts(),
        )
    }

    /// The rows of some buckets of a table with a key. Columns: those of a state, key.
    pub(super) fn list(&self, range: &Range, buckets: i64, of: &[i64]) -> Query {
        let mut params = vec![(buckets - 1).to_string(), array(of)];
        let condition = self.within(range, &mut params);
        let sql = format!(
            "SELECT {}, s.key FROM {} WHERE s.place & $1::text::int8 = ANY ($2::text::int8[])",
            self.state(),
            self.rows(&condition),
        );
        Query { sql, params }
    }

    /// The rows of some keys (a JSON array of arrays of texts), in their order; rows that are missing have NULL.
    /// Columns: those of a state, timestamp and node of the newest delete remembered.
    pub(super) fn reread(&self, keys: String) -> Query {
        let sql = format!(
            "SELECT {}, d.deleted, d.node FROM json_array_elements($1::text::json) WITH ORDINALITY AS u(k, n) \
             LEFT JOIN LATERAL {} ON true LEFT JOIN LATERAL (SELECT {} AS deleted, d.node FROM tandem.tombstone AS d \
             WHERE d.relation = {} AND d.key = ANY (ARRAY[{}, '[]']) ORDER BY d.deleted DESC, d.node DESC LIMIT 1) AS d \
             ON true ORDER BY u.n",
            self.state(),
            self.rows(&format!(" WHERE {}", key_is(self.table, "u.k"))),
            microseconds_sql("d.deleted"),
            self.table.literal(),
            remembered_key(self.table, "u.k"),
        );
        Query {
            sql,
            params: vec![keys],
        }
    }

    /// What people see of some keys. Columns: key as JSON, row as JSON or NULL.
    pub(super) fn images(&self, keys: String) -> Query {
        let sql = format!(
            "SELECT {}::text, s.image FROM json_array_elements($1::text::json) WITH ORDINALITY AS u(k, n) \
             LEFT JOIN LATERAL (SELECT row_to_json(r.*)::text AS image FROM ONLY {} AS r WHERE {} OFFSET 0) AS s ON true \
             ORDER BY u.n",
            remembered_key(self.table, "u.k"),
            self.table.qualified(),
            key_is(self.table, "u.k"),
        );
        Query {
            sql,
            params: vec![keys],
        }
    }

    /// The values of some rows, which are still the ones that were compared: each is named by its key and, behind it,
    /// its xmin. Columns: place in `keys` from 1, values as text by column.
    pub(super) fn values(&self, keys: String) -> Query {
        let sql = format!(
            "SELECT u.n, {} FROM json_array_elements($1::text::json) WITH ORDINALITY AS u(k, n), ONLY {} AS r \
             WHERE {} AND r.xmin::text = u.k->>{} ORDER BY u.n",
            self.texts(),
            self.table.qualified(),
            key_is(self.table, "u.k"),
            self.table.key.len(),
        );
        Query {
            sql,
            params: vec![keys],
        }
    }

    fn texts(&self) -> String {
        let texts: Vec<_> = self
            .table
            .columns
            .iter()
            .map(|column| format!("r.{}::text", quote(&column.name)))
            .collect();
        format!("ARRAY[{}]::text[]", texts.join(", "))
    }
}

/// Queries of tables without a key, whose rows are told apart by their content only.
impl Asker<'_> {
    /// The contents of some buckets. Columns: content (two), how often.
    pub(super) fn contents(&self, buckets: i64, of: &[i64]) -> Query {
        let sql = format!(
            "SELECT {}, {}, count(*) FROM {} WHERE s.place & $1::text::int8 = ANY ($2::text::int8[]) GROUP BY 1, 2",
            hash("s.content", 0),
            hash("s.content", 1),
            self.rows(""),
        );
        Query {
            sql,
            params: vec![(buckets - 1).to_string(), array(of)],
        }
    }

    /// The same for some contents, by the first hash of each.
    pub(super) fn recount(&self, contents: &[i64]) -> Query {
        let first = hash("s.content", 0);
        let sql = format!(
            "SELECT {first}, {}, count(*) FROM {} WHERE {first} = ANY ($1::text::int8[]) GROUP BY 1, 2",
            hash("s.content", 1),
            self.rows(""),
        );
        Query {
            sql,
            params: vec![array(contents)],
        }
    }

    /// One row of each of some contents. Columns: content (two), the row as JSON, values as text by column.
    pub(super) fn samples(&self, contents: &[i64]) -> Query {
        let (first, second) = (hash(&content(self.table), 0), hash(&content(self.table), 1));
        let sql = format!(
            "SELECT DISTINCT ON (1, 2) {first}, {second}, row_to_json(r.*)::text, {} FROM ONLY {} AS r \
             WHERE {first} = ANY ($1::text::int8[])",
            self.texts(),
            self.table.qualified(),
        );
        Query {
            sql,
            params: vec![array(contents)],
        }
    }

    /// The versions of some contents. Columns: content (two), timestamp, node, how often.
    pub(super) fn versions(&self, contents: &[i64]) -> Query {
        let first = hash("s.content", 0);
        let sql = format!(
            "SELECT {first}, {}, {}, ({})::int4, count(*) FROM {} WHERE {first} = ANY ($1::text::int8[]) \
             GROUP BY 1, 2, 3, 4",
            hash("s.content", 1),
            microseconds_sql(self.version.timestamp),
            self.version.node,
            self.rows(""),
        );
        Query {
            sql,
            params: vec![array(contents)],
        }
    }
}

fn array(numbers: &[i64]) -> String {
    let numbers: Vec<_> = numbers.iter().map(ToString::to_string).collect();
    format!("{{{}}}", numbers.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::plan::{Column, KeyColumn};

    fn table(key: &[(&str, &str)]) -> NodeTable {
        let columns = [("Id", "integer"), ("note", "text"), ("region", "text")];
        NodeTable {
            schema: "public".to_owned(),
            name: "we\"ird's".to_owned(),
            columns: columns
                .map(|(name, data_type)| Column {
                    name: name.to_owned(),
                    data_type: data_type.to_owned(),
                })
                .into(),
            key: key
                .iter()
                .map(|(name, data_type)| KeyColumn {
                    name: (*name).to_owned(),
                    data_type: (*data_type).to_owned(),
                    equals: "OPERATOR(pg_catalog.=)".to_owned(),
                    is_ranged: true,
                })
                .collect(),
            fixed: Vec::new(),
            rows: 0,
        }
    }

    fn version() -> RowVersion {
        let since = [(1, "2026-01-02"), (2, "2026-01-03")]
            .map(|(node, at)| (node, vec![at.to_owned()]))
            .into();
        RowVersion::new(1, &HashMap::from([(7, 2), (9, 3)]), &since)
    }

    #[test]
    fn ranges_are_half_open_and_open_at_the_ends() {
        let (table, version) = (table(&[("Id", "integer"), ("region", "text")]), version());
        let asker = Asker {
            table: &table,
            version: &version,
        };
        let all = asker.digest(&Range::default(), 256);
        assert!(
            all.sql.contains("AND k.writer = r.xmin OFFSET 0"),
            "{}",
            all.sql
        );
        let bound = |text: &str| Some(vec![text.to_owned()]);
        let range = Range {
            lower: bound("5"),
            upper: bound("9"),
        };
        let part = asker.digest(&range, 256);
        assert!(
            part.sql.contains(
                r#"WHERE (r."Id") >= (($2::text)::integer) AND (r."Id") < (($3::text)::integer)"#
            ),
            "{}",
            part.sql
        );
        assert_eq!(part.params, ["255", "5", "9"]);
        let next = asker.boundary(range.lower.as_deref(), 1, 50);
        assert!(
            next.sql
                .contains(r#"WHERE (r."Id") > (($1::text)::integer) ORDER BY r."Id" OFFSET 50"#),
            "{}",
            next.sql
        );
    }

    #[test]
    fn sums_cover_the_version_only_where_rows_can_be_told_apart() {
        let version = version();
        let counts = "CASE (s.written).roident WHEN 7 THEN timestamptz '2026-01-03' \
                      WHEN 9 THEN timestamptz '-infinity' ELSE timestamptz '2026-01-02' END";
        for (key, covered) in [(vec![("Id", "integer")], true), (vec![], false)] {
            let table = table(&key);
            let asker = Asker {
                table: &table,
                version: &version,
            };
            let sql = asker.digest(&Range::default(), 16).sql;
            assert_eq!(sql.contains(counts), covered, "{sql}");
        }
    }

    #[test]
    fn keys_are_found_by_the_operators_and_types_of_their_columns() {
        let (table, version) = (table(&[("region", "text"), ("Id", "integer")]), version());
        let asker = Asker {
            table: &table,
            version: &version,
        };
        let sql = asker.reread("[]".to_owned()).sql;
        assert!(
            sql.contains(
                r#"r."region" OPERATOR(pg_catalog.=) (u.k->>0)::text AND r."Id" OPERATOR(pg_catalog.=) (u.k->>1)::integer"#
            ),
            "{sql}"
        );
        assert!(
            sql.contains(r#"d.relation = '"public"."we""ird''s"' AND d.key = ANY (ARRAY[jsonb_build_array((u.k->>0)::text, (u.k->>1)::integer), '[]'])"#),
            "{sql}"
        );
    }
}
