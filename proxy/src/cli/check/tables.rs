//! Owns what `tandem check` reads of a node's database: its tables in detail, and the texts in which statements stand.

use std::time::Duration;

use serde::Deserialize;
use tandem_routing_rules::{
    catalog::ColumnType,
    schema::{Column, ForeignKey, Sequence, Table, UniqueKey},
};
use tandem_wire::{ConnectError, Connection, ConnectionError};
use tokio::time::timeout;

use crate::{config::Config, node::Node};

/// Bound of all questions together.
const LIMIT: Duration = Duration::from_secs(30);

/// Why a node does not say what it has.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Query(#[from] ConnectionError),
    #[error("the answer is not as expected: {0}")]
    Answer(#[from] serde_json::Error),
    #[error("no answer within {} s", LIMIT.as_secs())]
    Timeout,
}

/// What a database has.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) tables: Vec<Table>,
    pub(super) texts: Texts,
}

/// Where statements of the application stand.
#[derive(Debug)]
pub(super) struct Texts {
    /// What was run. None: the server does not keep it.
    pub(super) statements: Option<Vec<String>>,
    pub(super) functions: Vec<String>,
    pub(super) rules: Vec<String>,
}

/// Reads the replicated database of a node.
pub(super) async fn read(node: &Node, config: &Config) -> Result<Database, ReadError> {
    let reading = async {
        let params = [
            ("application_name", "tandem check"),
            ("options", "-c search_path= -c statement_timeout=30s"),
        ];
        let params = params.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let database = &config.replication.database;
        let options = node.own_options(
            database,
            params.to_vec(),
            config.proxy.server_connect_timeout,
        );
        let mut connection = tandem_wire::connect(&options).await?;
        let mut tables = Vec::new();
        for text in column(&mut connection, TABLES).await? {
            let found: FoundTable = serde_json::from_str(&text)?;
            tables.push(found.table(config));
        }
        let texts = Texts {
            statements: statements(&mut connection).await?,
            functions: column(&mut connection, FUNCTIONS).await?,
            rules: column(&mut connection, RULES).await?,
        };
        connection.close().await;
        Ok(Database { tables, texts })
    };
    timeout(LIMIT, reading)
        .await
        .unwrap_or(Err(ReadError::Timeout))
}

/// What `pg_stat_statements` has of this database.
async fn statements(connection: &mut Connection) -> Result<Option<Vec<String>>, ReadError> {
    let Some(view) = column(connection, STATEMENTS_VIEW).await?.pop() else {
        return Ok(None);
    };
    let sql = format!(
        "SELECT query FROM {view} WHERE query ~* 'update|conflict' AND dbid = \
         (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) LIMIT 10000"
    );
    match column(connection, &sql).await {
        Ok(statements) => Ok(Some(statements)),
        // The library is not loaded.
        Err(ReadError::Query(ConnectionError::Server(_))) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The first column of what a query finds.
async fn column(connection: &mut Connection, sql: &str) -> Result<Vec<String>, ReadError> {
    let rows = connection.simple_query(sql).await?;
    let first = rows.into_iter().filter_map(|row| row.into_iter().next()?);
    Ok(first.collect())
}

/// One JSON object for each table and view.
const TABLES: &str = "\
SELECT pg_catalog.json_build_object(
    'schema', n.nspname, 'name', c.relname, 'is_view', c.relkind IN ('v', 'm'), 'is_partition', c.relispartition,
    'columns', COALESCE((
        SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
            'name', a.attname, 'type_name', pg_catalog.format_type(a.atttypid, a.atttypmod),
            'type_oid', CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END::bigint,
            'deterministic', l.collisdeterministic, 'sequence', (
                SELECT pg_catalog.json_build_array(s.seqrelid::pg_catalog.regclass::text, s.seqincrement)
                FROM pg_catalog.pg_sequence s WHERE s.seqrelid = COALESCE((
                    SELECT p.refobjid FROM pg_catalog.pg_attrdef d
                        JOIN pg_catalog.pg_depend p ON p.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND p.objid = d.oid
                            AND p.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                        JOIN pg_catalog.pg_class q ON q.oid = p.refobjid AND q.relkind = 'S'
                    WHERE d.adrelid = c.oid AND d.adnum = a.attnum LIMIT 1), (
                    SELECT p.objid FROM pg_catalog.pg_depend p
                    WHERE p.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND p.deptype = 'i'
                        AND p.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                        AND p.refobjid = c.oid AND p.refobjsubid = a.attnum LIMIT 1)))) ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
            LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '[]'::json),
    'unique_keys', COALESCE((
        SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
            'name', k.relname, 'is_primary', i.indisprimary, 'columns', (
                SELECT pg_catalog.json_agg(a.attname ORDER BY u.place)
                FROM pg_catalog.unnest(i.indkey::smallint[]) WITH ORDINALITY u (number, place)
                    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = u.number
                WHERE u.place <= i.indnkeyatts)) ORDER BY k.relname)
        FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class k ON k.oid = i.indexrelid
        WHERE i.indrelid = c.oid AND i.indisunique AND i.indexprs IS NULL), '[]'::json),
    'foreign_keys', COALESCE((
        SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
            'name', f.conname, 'table', pg_catalog.json_build_array(pn.nspname, p.relname),
            'columns', (
                SELECT pg_catalog.json_agg(a.attname ORDER BY u.place)
                FROM pg_catalog.unnest(f.conkey) WITH ORDINALITY u (number, place)
                    JOIN pg_catalog.pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = u.number),
            'referenced', (
                SELECT pg_catalog.json_agg(a.attname ORDER BY u.place)
                FROM pg_catalog.unnest(f.confkey) WITH ORDINALITY u (number, place)
                    JOIN pg_catalog.pg_attribute a ON a.attrelid = f.confrelid AND a.attnum = u.number)) ORDER BY f.conname)
        FROM pg_catalog.pg_constraint f JOIN pg_catalog.pg_class p ON p.oid = f.confrelid
            JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
        WHERE f.conrelid = c.oid AND f.contype = 'f' AND f.conparentid = 0), '[]'::json))
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm') AND c.relpersistence <> 't'
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'tandem') AND n.nspname !~ '^pg_toast'
ORDER BY n.nspname, c.relname";

/// Where the extension is, as a name for FROM.
const STATEMENTS_VIEW: &str = "\
SELECT pg_catalog.format('%I.pg_stat_statements', n.nspname)
FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'pg_stat_statements'";

/// The bodies of functions and procedures in SQL and PL/pgSQL.
const FUNCTIONS: &str = "\
SELECT COALESCE(pg_catalog.pg_get_function_sqlbody(p.oid), p.prosrc)
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    JOIN pg_catalog.pg_language l ON l.oid = p.prolang
WHERE l.lanname IN ('sql', 'plpgsql') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'tandem')
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
        AND d.objid = p.oid AND d.deptype = 'e')";

/// Rules, but for those that make a view.
const RULES: &str = "\
SELECT pg_catalog.pg_get_ruledef(r.oid)
FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE r.rulename <> '_RETURN' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'tandem')";

/// A row of [`TABLES`].
#[derive(Debug, Deserialize)]
struct FoundTable {
    schema: String,
    name: String,
    is_view: bool,
    is_partition: bool,
    columns: Vec<FoundColumn>,
    unique_keys: Vec<FoundUniqueKey>,
    foreign_keys: Vec<FoundForeignKey>,
}

#[derive(Debug, Deserialize)]
struct FoundColumn {
    name: String,
    type_name: String,
    type_oid: u32,
    deterministic: Option<bool>,
    sequence: Option<(String, i64)>,
}

#[derive(Debug, Deserialize)]
struct FoundUniqueKey {
    name: String,
    is_primary: bool,
    columns: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct FoundForeignKey {
    name: String,
    columns: Vec<String>,
    table: (String, String),
    referenced: Vec<String>,
}

impl FoundTable {
    fn table(self, config: &Config) -> Table {
        let policies = &config.replication.policies;
        let policy = policies.get(&(self.schema.clone(), self.name.clone()));
        let is_counter =
            |name: &String| policy.is_some_and(|policy| policy.counters.contains(name));
        let columns = self.columns.into_iter();
        let unique_keys = self.unique_keys.into_iter();
        let foreign_keys = self.foreign_keys.into_iter();
        Table {
            columns: columns
                .map(|found| Column {
                    is_counter: is_counter(&found.name),
                    name: found.name,
                    type_name: found.type_name,
                    column_type: ColumnType::of_oid(found.type_oid)
                        .with_collation(found.deterministic),
                    sequence: found
                        .sequence
                        .map(|(name, increment)| Sequence { name, increment }),
                })
                .collect(),
            unique_keys: unique_keys
                .map(|found| UniqueKey {
                    name: found.name,
                    is_primary: found.is_primary,
                    columns: found.columns,
                })
                .collect(),
            foreign_keys: foreign_keys
                .map(|found| ForeignKey {
                    name: found.name,
                    columns: found.columns,
                    table: found.table,
                    referenced: found.referenced,
                })
                .collect(),
            schema: self.schema,
            name: self.name,
            is_view: self.is_view,
            is_partition: self.is_partition,
        }
    }
}
