//! Owns the comparison of nodes: every row of every user table, with the version that wrote it.
//!
//! A version is (commit timestamp, node): the timestamp and origin that `pg_xact_commit_timestamp_origin` gives for the
//! row's `xmin`, the origin `tandem_<node>_<worker>` standing for its node and none for the node itself; or what
//! `tandem.kept` says while the row is still that transaction's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use tokio_postgres::Client;

use crate::{Node, client};

/// Differing rows that are shown per table.
const SHOWN: usize = 8;

/// A table's rows by key. A table without a primary key is a multiset: the row is the key, its count the content.
type Rows = BTreeMap<String, String>;

/// One table as its node's catalog has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Table {
    /// Quoted, with schema.
    name: String,
    /// The same with every part quoted, as Tandem's own tables have it.
    relation: String,
    /// Columns of the key, in its order, and all, by name; quoted.
    key: Vec<String>,
    columns: Vec<String>,
}

/// What differs, for a person to read; empty when all nodes hold the same. Rows of transactions before `since` (an SQL
/// timestamp), or before the newest run on any node, are compared by content only.
///
/// # Panics
/// A node does not answer.
pub async fn differences(nodes: &[Node], since: &str) -> String {
    // Rows of a run carry another version on the node that applied it than on the others.
    let mut latest = since.to_owned();
    for node in nodes {
        latest = behind_runs(node, &latest).await;
    }
    let mut sides = Vec::new();
    for node in nodes {
        sides.push(Side::open(node, &latest).await);
    }
    let Some((first, others)) = sides.split_first() else {
        return String::new();
    };
    let mut text = String::new();
    let names: BTreeSet<&Table> = sides.iter().flat_map(|side| &side.tables).collect();
    for table in names {
        let lacking: Vec<&str> = sides
            .iter()
            .filter(|side| !side.tables.contains(table))
            .map(|side| side.node.as_str())
            .collect();
        if !lacking.is_empty() {
            let _ = writeln!(
                text,
                "{} is not the same table on {}: {table:?}",
                table.name,
                lacking.join(", ")
            );
            continue;
        }
        let digest = first.digest(table).await;
        let mut differs = false;
        for other in others {
            differs |= other.digest(table).await != digest;
        }
        if differs {
            text.push_str(&row_differences(&sides, table).await);
        }
    }
    text
}

/// The later of `since` and what is behind the newest run on the node.
async fn behind_runs(node: &Node, since: &str) -> String {
    let client = node.connect().await;
    if client::value(&client, "SELECT to_regclass('tandem.run') IS NOT NULL").await != "t" {
        return since.to_owned();
    }
    let sql = format!(
        "SELECT greatest(timestamptz '{since}', (SELECT max(stamp) + interval '1 microsecond' FROM tandem.run))::text"
    );
    client::value(&client, &sql).await
}

/// One node in a comparison.
struct Side {
    node: String,
    client: Client,
    tables: Vec<Table>,
    since: String,
    /// Whether Tandem has been here.
    has_kept: bool,
    /// The SQL expression of the node of an origin `v.roident`.
    node_of: String,
}

impl Side {
    async fn open(node: &Node, since: &str) -> Self {
        let client = node.connect().await;
        client::execute(
            &client,
            "SET extra_float_digits = 3; SET bytea_output = hex; SET timezone = 'UTC'; SET datestyle = ISO; \
             SET intervalstyle = postgres; SET search_path = pg_catalog; SET work_mem = '64MB'",
        )
        .await;
        let mut origins = format!("WHEN 0 THEN '{}'", node.id);
        for row in client::rows(&client, "SELECT roident, roname FROM pg_replication_origin").await
        {
            let [Some(id), Some(name)] = row.as_slice() else {
                continue;
            };
            let node = name
                .strip_prefix("tandem_")
                .and_then(|rest| rest.split_once('_'))
                .map(|(node, _)| node);
            let _ = write!(origins, " WHEN {id} THEN '{}'", node.unwrap_or(name));
        }
        let node_of = format!("CASE v.roident {origins} ELSE 'unknown' END");
        let tables = tables(&client).await;
        let has_kept =
            client::value(&client, "SELECT to_regclass('tandem.kept') IS NOT NULL").await == "t";
        Self {
            node: node.name.clone(),
            client,
            tables,
            since: since.to_owned(),
            has_kept,
            node_of,
        }
    }

    /// The SQL expression of a row's version, over the table alias `t`.
    fn version(&self, table: &Table) -> String {
        let kept = if self.has_kept {
            self.kept(table)
        } else {
            "NULL".to_owned()
        };
        format!(
            "coalesce({kept}, (SELECT CASE WHEN v.timestamp IS NULL OR v.timestamp < '{}' THEN 'initial' \
             ELSE v.timestamp::text || ' node ' || {} END FROM pg_xact_commit_timestamp_origin(t.xmin) AS v))",
            self.since, self.node_of
        )
    }

    /// What `tandem.kept` says of it.
    fn kept(&self, table: &Table) -> String {
        let key: Vec<_> = table
            .key
            .iter()
            .map(|column| format!("t.{column}"))
            .collect();
        format!(
            "(SELECT CASE WHEN k.written < '{since}' THEN 'initial' ELSE k.written::text || ' node ' || k.node END \
             FROM tandem.kept k WHERE k.relation = '{relation}' AND k.key = jsonb_build_array({key}) AND k.writer = t.xmin)",
            since = self.since,
            relation = table.relation.replace('\'', "''"),
            key = key.join(", "),
        )
    }

    /// Equal on two nodes only when all rows and versions are, but for a collision of 64-bit hashes.
    async fn digest(&self, table: &Table) -> String {
        let hashed = format!(
            "hashtextextended({} || {}, 0)::numeric",
            row_text(&table.columns),
            self.version(table)
        );
        let sql = format!(
            "SELECT count(*) || '/' || coalesce(sum({hashed}), 0) FROM {} AS t",
            table.name
        );
        client::value(&self.client, &sql).await
    }

    async fn rows(&self, table: &Table) -> Rows {
        let content = format!(
            "{} || ' at ' || {}",
            row_text(&table.columns),
            self.version(table)
        );
        let sql = if table.key.is_empty() {
            format!(
                "SELECT x, count(*)::text || ' times' FROM (SELECT {content} AS x FROM {} AS t) AS s GROUP BY x",
                table.name
            )
        } else {
            format!(
                "SELECT {}, {content} FROM {} AS t",
                row_text(&table.key),
                table.name
            )
        };
        let rows = client::rows(&self.client, &sql).await.into_iter();
        let text = |column: Option<Option<String>>| column.flatten().unwrap_or_default();
        rows.map(|row| {
            let mut row = row.into_iter();
            (text(row.next()), text(row.next()))
        })
        .collect()
    }
}

/// Columns in order of their names: the order in the table may differ between nodes.
fn row_text(columns: &[String]) -> String {
    let columns: Vec<String> = columns
        .iter()
        .map(|column| format!("t.{column}::text"))
        .collect();
    format!("ROW({})::text", columns.join(", "))
}

async fn tables(client: &Client) -> Vec<Table> {
    let sql = "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname), \
         (SELECT string_agg(quote_ident(a.attname), ',' ORDER BY array_position(i.indkey::int2[], a.attnum)) FROM pg_attribute a \
           JOIN pg_index i ON i.indrelid = a.attrelid AND a.attnum = ANY (i.indkey) \
           WHERE a.attrelid = c.oid AND i.indisprimary), \
         (SELECT string_agg(quote_ident(a.attname), ',' ORDER BY a.attname) FROM pg_attribute a \
           WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), \
         concat(q, replace(n.nspname, q, q || q), q, '.', q, replace(c.relname, q, q || q), q) \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, chr(34) AS q \
         WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'tandem') \
         ORDER BY 1";
    let names = |text: Option<String>| -> Vec<String> {
        text.map(|text| text.split(',').map(str::to_owned).collect())
            .unwrap_or_default()
    };
    let rows = client::rows(client, sql).await.into_iter();
    rows.map(|row| {
        let mut row = row.into_iter();
        let name = row.next().flatten().unwrap_or_default();
        Table {
            name,
            key: names(row.next().flatten()),
            columns: names(row.next().flatten()),
            relation: row.next().flatten().unwrap_or_default(),
        }
    })
    .collect()
}

async fn row_differences(sides: &[Side], table: &Table) -> String {
    let mut contents = Vec::new();
    for side in sides {
        contents.push((side.node.as_str(), side.rows(table).await));
    }
    let keys: BTreeSet<&String> = contents.iter().flat_map(|(_, rows)| rows.keys()).collect();
    let differing: Vec<&String> = keys
        .into_iter()
        .filter(|key| {
            let mut rows = contents.iter().map(|(_, rows)| rows.get(*key));
            let first = rows.next().flatten();
            rows.any(|row| row != first)
        })
        .collect();
    if differing.is_empty() {
        return String::new();
    }
    let mut text = format!("{}: {} rows differ", table.name, differing.len());
    for (node, rows) in &contents {
        let _ = write!(text, ", {node} has {}", rows.len());
    }
    text.push('\n');
    for key in differing.iter().take(SHOWN) {
        let _ = writeln!(text, "  {}", shortened(key));
        for (node, rows) in &contents {
            let _ = writeln!(
                text,
                "    {node}: {}",
                rows.get(*key)
                    .map_or_else(|| "(no row)".to_owned(), |row| shortened(row))
            );
        }
    }
    if differing.len() > SHOWN {
        let _ = writeln!(text, "  … and {} more", differing.len() - SHOWN);
    }
    text
}

/// A row of many bytes by its beginning, its version at the end, and its length.
fn shortened(row: &str) -> String {
    const KEPT: usize = 240;
    let chars = row.chars().count();
    if chars <= 2 * KEPT {
        return row.to_owned();
    }
    let begin: String = row.chars().take(KEPT).collect();
    let end: String = row.chars().skip(chars - KEPT / 2).collect();
    format!("{begin} … {end} ({chars} characters)")
}
