//! Writes of a repair: one transaction per version, under that version.
//!
//! A transaction under an origin of Tandem's is not forwarded; the other nodes take its `O` message for a cause, whose
//! position 0/1 every link has long passed. `pg_replication_origin_xact_setup` is the last statement before COMMIT: its
//! values outlive the transaction.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tandem_wire::connect::ConnectOptions;
use thiserror::Error;
use tokio::sync::RwLock;

use super::VerifyError;
use super::plan::NodeTable;
use super::side::SETTINGS;
use crate::apply::{quote, remember};
use crate::control::{Control, ControlError};
use crate::node::Shared;
use crate::origin::{OriginName, REPAIR};
use crate::version::Version;

/// Pause before a node is asked again whether a lost session has ended.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// A write waits for other transactions only so long, because links wait for it.
const WRITER_SETTINGS: &str = "SET session_replication_role = replica; SET lock_timeout = '2s'; SET statement_timeout = '60s'; \
    SET idle_in_transaction_session_timeout = '60s'";

/// Why a transaction was not committed, or perhaps not.
#[derive(Debug, Error)]
pub(super) enum WriteError {
    /// A row is not what it was when it was compared.
    #[error("the row has changed since it was compared")]
    Changed,
    /// The version is of a time that the node's clock has not reached.
    #[error("the version is newer than the node's clock")]
    ClockBehind,
    /// The node refused it, or was lost.
    #[error(transparent)]
    Node(#[from] ControlError),
}

/// A statement with its rows, and how many rows it must find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    sql: String,
    rows: String,
    expected: Option<usize>,
}

/// Values of a row as text, by column.
pub(super) type Values = Vec<Option<String>>;

/// Rows as the JSON array of arrays that the statements read: `v->>0` and so on.
fn rows_json(rows: &[Values]) -> String {
    serde_json::to_string(rows).unwrap_or_default()
}

/// Statements that write a table of one node. Each row that they take begins with the values of all columns, or of the
/// key; what the row must be now, or how often it is written, comes behind.
pub(super) struct Statements<'a>(pub(super) &'a NodeTable);

const ROWS: &str = "json_array_elements($1::text::json) AS u(v)";

impl Statements<'_> {
    fn value(&self, place: usize) -> String {
        let data_type = self
            .0
            .columns
            .get(place)
            .map_or("text", |column| column.data_type.as_str());
        format!("(u.v->>{place})::{data_type}")
    }

    fn place(&self, name: &str) -> usize {
        let place = self.0.columns.iter().position(|column| column.name == name);
        place.unwrap_or(usize::MAX)
    }

    /// The key's values; `by_column`: of rows that begin with all columns.
    fn key(&self, by_column: bool) -> Vec<String> {
        let key = self.0.key.iter().enumerate();
        key.map(|(number, column)| {
            let place = if by_column {
                self.place(&column.name)
            } else {
                number
            };
            format!("(u.v->>{place})::{}", column.data_type)
        })
        .collect()
    }

    /// True for the row `r` that is still what it was: its xmin stands behind the `width` other values.
    fn is_same(&self, by_column: bool, width: usize) -> String {
        let mut condition = String::new();
        for (column, value) in self.0.key.iter().zip(self.key(by_column)) {
            condition += &format!("r.{} {} {value} AND ", quote(&column.name), column.equals);
        }
        format!("{condition}r.xmin::text = u.v->>{width}")
    }

    fn remembered(&self, by_column: bool) -> String {
        format!("jsonb_build_array({})", self.key(by_column).join(", "))
    }

    fn columns(&self) -> (String, String) {
        let names: Vec<_> = self
            .0
            .columns
            .iter()
            .map(|column| quote(&column.name))
            .collect();
        let values: Vec<_> = (0..names.len()).map(|place| self.value(place)).collect();
        (names.join(", "), values.join(", "))
    }

    /// Gives rows their values. Rows: all columns, xmin.
    pub(super) fn replace(&self, rows: &[Values]) -> Step {
        let key = |name: &String| self.0.key.iter().any(|column| column.name == *name);
        let mut sets: Vec<_> = self
            .0
            .columns
            .iter()
            .enumerate()
            .filter(|(_, column)| !key(&column.name) && !self.0.fixed.contains(&column.name))
            .map(|(place, column)| format!("{} = {}", quote(&column.name), self.value(place)))
            .collect();
        if sets.is_empty() {
            sets.push(self.same_key());
        }
        self.update(
            &sets.join(", "),
            &self.is_same(true, self.0.columns.len()),
            rows,
        )
    }

    /// Writes rows once more as they are. Rows: key, xmin.
    pub(super) fn touch(&self, rows: &[Values]) -> Step {
        self.update(
            &self.same_key(),
            &self.is_same(false, self.0.key.len()),
            rows,
        )
    }

    fn same_key(&self) -> String {
        let column = self
            .0
            .key
            .first()
            .map_or_else(String::new, |column| quote(&column.name));
        format!("{column} = r.{column}")
    }

    fn update(&self, sets: &str, condition: &str, rows: &[Values]) -> Step {
        let sql = format!(
            "WITH w AS (UPDATE ONLY {} AS r SET {sets} FROM {ROWS} WHERE {condition} RETURNING 1) SELECT count(*) FROM w",
            self.0.qualified()
        );
        Step {
            sql,
            rows: rows_json(rows),
            expected: Some(rows.len()),
        }
    }

    /// Writes missing rows, unless a delete that is newer than `version` is remembered. Rows: all columns.
    pub(super) fn insert(&self, rows: &[Values], version: Version) -> Step {
        let (names, values) = self.columns();
        let key: Vec<_> = self
            .0
            .key
            .iter()
            .map(|column| quote(&column.name))
            .collect();
        let sql = format!(
            "WITH w AS (INSERT INTO {} ({names}) OVERRIDING SYSTEM VALUE SELECT {values} FROM {ROWS} WHERE NOT EXISTS \
             (SELECT FROM tandem.tombstone AS d WHERE d.relation = {} AND d.key = ANY (ARRAY[{}, '[]']) \
             AND (d.deleted, d.node) > ({}, {})) ON CONFLICT ({}) DO NOTHING RETURNING 1) SELECT count(*) FROM w",
            self.0.qualified(),
            self.0.literal(),
            self.remembered(true),
            timestamp(version),
            version.node,
            key.join(", "),
        );
        Step {
            sql,
            rows: rows_json(rows),
            expected: Some(rows.len()),
        }
    }

    /// Writes rows of a table without a key. Rows: all columns, how often.
    pub(super) fn add(&self, rows: &[Values], copies: usize) -> Step {
        let (names, values) = self.columns();
        let sql = format!(
            "WITH w AS (INSERT INTO {} ({names}) OVERRIDING SYSTEM VALUE SELECT {values} FROM {ROWS}, \
             generate_series(1, (u.v->>{})::int8) RETURNING 1) SELECT count(*) FROM w",
            self.0.qualified(),
            self.0.columns.len(),
        );
        Step {
            sql,
            rows: rows_json(rows),
            expected: Some(copies),
        }
    }

    /// Deletes rows; with a version it remembers that, without one the node's own stream will tell. Rows: key, xmin.
    pub(super) fn delete(&self, rows: &[Values], version: Option<Version>) -> Step {
        let relation = self.0.literal();
        let bury = version.map_or_else(String::new, |version| {
            let timestamp = timestamp(version);
            let insert = remember(&relation, "w.key", &timestamp, version.node, "FROM w");
            format!(", b AS ({insert})")
        });
        let sql = format!(
            "WITH w AS (DELETE FROM ONLY {} AS r USING {ROWS} WHERE {} RETURNING {} AS key){bury} SELECT count(*) FROM w",
            self.0.qualified(),
            self.is_same(false, self.0.key.len()),
            self.remembered(false),
        );
        Step {
            sql,
            rows: rows_json(rows),
            expected: Some(rows.len()),
        }
    }

    /// Notes that rows have all their values (see `apply/incomplete.rs`). Rows: all columns.
    pub(super) fn complete(&self, rows: &[Values]) -> Step {
        let sql = format!(
            "WITH w AS (DELETE FROM tandem.incomplete AS i USING {ROWS} WHERE i.relation = {} AND i.key = {} RETURNING 1) \
             SELECT count(*) FROM w",
            self.0.literal(),
            self.remembered(true),
        );
        Step {
            sql,
            rows: rows_json(rows),
            expected: None,
        }
    }
}

fn timestamp(version: Version) -> String {
    format!("timestamptz '{}'", version.timestamp_text())
}

/// The sessions in which a run writes: one per node and origin, because an origin belongs to a session.
pub(super) struct Writers {
    shared: Arc<Shared>,
    open: HashMap<(usize, Option<u16>), Arc<Writer>>,
}

struct Writer {
    control: Control,
    pid: i32,
    name: String,
    connect: ConnectOptions,
}

impl Writers {
    /// None is opened before it is needed.
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            open: HashMap::new(),
        }
    }

    /// Carries out one transaction on the node with this index, under `version`; without one as a change of the node's
    /// own, which is replicated. Nothing is applied to the node meanwhile. Once begun it goes on if the caller is gone.
    ///
    /// # Errors
    /// The outer one ends the run. After the inner one nothing was written, but for a session that was lost: there the
    /// next look tells.
    pub(super) async fn write(
        &mut self,
        index: usize,
        version: Option<Version>,
        steps: Vec<Step>,
    ) -> Result<Result<(), WriteError>, VerifyError> {
        let origin = version.map(|version| version.node);
        let (Some(node), Some(gate)) = (
            self.shared.config.nodes.get(index),
            self.shared.gates.get(index),
        ) else {
            return Err(VerifyError::Stopping);
        };
        let writer = match self.open.get(&(index, origin)) {
            Some(writer) => Arc::clone(writer),
            None => match Writer::open(&node.connect, &self.shared.config.cluster, origin).await {
                Ok(writer) => Arc::new(writer),
                Err(error) => return Ok(Err(error.into())),
            },
        };
        let gate = Arc::clone(gate);
        let working = Arc::clone(&writer);
        let written =
            tokio::spawn(async move { working.transaction(gate, version, steps).await }).await;
        let (written, is_sound) = written.map_err(|_| VerifyError::Stopping)?;
        if is_sound {
            self.open.insert((index, origin), writer);
        } else {
            self.open.remove(&(index, origin));
        }
        Ok(written)
    }
}

impl Writer {
    async fn open(
        connect: &ConnectOptions,
        cluster: &str,
        origin: Option<u16>,
    ) -> Result<Self, ControlError> {
        let name = format!("tandem:{cluster}:repair");
        let control = Control::connect(connect, &name).await?;
        control.execute(SETTINGS).await?;
        control.execute(WRITER_SETTINGS).await?;
        if let Some(node) = origin {
            let origin = OriginName {
                node,
                worker: REPAIR,
            };
            let sql = format!("SELECT pg_replication_origin_session_setup('{origin}')");
            control.execute(&sql).await?;
        }
        let rows = control.query("SELECT pg_backend_pid()", &[]).await?;
        let row = rows
            .first()
            .ok_or(ControlError::Unexpected("pg_backend_pid"))?;
        Ok(Self {
            pid: row.try_get(0)?,
            control,
            name,
            connect: connect.clone(),
        })
    }

    /// Answers also whether the session can be used again.
    async fn transaction(
        &self,
        gate: Arc<RwLock<()>>,
        version: Option<Version>,
        steps: Vec<Step>,
    ) -> (Result<(), WriteError>, bool) {
        let guard = gate.write_owned().await;
        let Err(error) = self.steps(version, &steps).await else {
            return (Ok(()), true);
        };
        let is_sound = self.client().batch_execute("ROLLBACK").await.is_ok();
        if !is_sound {
            // It may still be working on the transaction: nothing may pass the gate until it has surely ended.
            let ended = ended(self.connect.clone(), self.name.clone(), self.pid);
            tokio::spawn(async move {
                ended.await;
                drop(guard);
            });
        }
        (Err(error), is_sound)
    }

    fn client(&self) -> &tokio_postgres::Client {
        self.control.client()
    }

    async fn steps(&self, version: Option<Version>, steps: &[Step]) -> Result<(), WriteError> {
        let lost = |error: tokio_postgres::Error| WriteError::Node(error.into());
        self.client().batch_execute("BEGIN").await.map_err(lost)?;
        for step in steps {
            let row = self
                .client()
                .query_one(&step.sql, &[&step.rows])
                .await
                .map_err(lost)?;
            let found: i64 = row.try_get(0).map_err(lost)?;
            if step
                .expected
                .is_some_and(|expected| i64::try_from(expected) != Ok(found))
            {
                return Err(WriteError::Changed);
            }
        }
        if let Some(version) = version {
            let timestamp = timestamp(version);
            self.client()
                .batch_execute("SET CONSTRAINTS ALL IMMEDIATE")
                .await
                .map_err(lost)?;
            let setup = format!(
                "SELECT pg_replication_origin_xact_setup('0/1', {timestamp}) WHERE clock_timestamp() > {timestamp}"
            );
            let set = self.client().query_opt(&setup, &[]).await.map_err(lost)?;
            if set.is_none() {
                return Err(WriteError::ClockBehind);
            }
        }
        self.client().batch_execute("COMMIT").await.map_err(lost)
    }
}

/// Ends a session that was lost, and waits until it is gone.
async fn ended(connect: ConnectOptions, name: String, pid: i32) {
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid = $1 AND application_name = $2";
    loop {
        let asked = async {
            let control = Control::connect(&connect, &name).await?;
            let rows = control.query(sql, &[&pid, &name]).await?;
            let row = rows
                .first()
                .ok_or(ControlError::Unexpected("pg_stat_activity"))?;
            Ok::<i64, ControlError>(row.try_get(0)?)
        };
        if let Ok(0) = asked.await {
            return;
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::plan::{Column, KeyColumn};

    fn table() -> NodeTable {
        let columns = [("amount", "numeric"), ("id", "integer"), ("seq", "bigint")];
        NodeTable {
            schema: "public".to_owned(),
            name: "t".to_owned(),
            columns: columns
                .map(|(name, data_type)| Column {
                    name: name.to_owned(),
                    data_type: data_type.to_owned(),
                })
                .into(),
            key: vec![KeyColumn {
                name: "id".to_owned(),
                data_type: "integer".to_owned(),
                equals: "OPERATOR(pg_catalog.=)".to_owned(),
                is_ranged: true,
            }],
            fixed: vec!["seq".to_owned()],
            rows: 0,
        }
    }

    const VERSION: Version = Version {
        timestamp: 1,
        node: 2,
    };

    #[test]
    fn a_row_is_replaced_only_while_it_is_what_was_compared() {
        let values = vec![Some("1.50".to_owned()), Some("7".to_owned()), None];
        let step = Statements(&table()).replace(&[[values, vec![Some("900".to_owned())]].concat()]);
        assert!(
            step.sql
                .contains(r#"SET "amount" = (u.v->>0)::numeric FROM"#),
            "what is generated always cannot be written: {}",
            step.sql
        );
        assert!(
            step.sql.contains(
                r#"WHERE r."id" OPERATOR(pg_catalog.=) (u.v->>1)::integer AND r.xmin::text = u.v->>3"#
            ),
            "{}",
            step.sql
        );
        assert_eq!(step.rows, r#"[["1.50","7",null,"900"]]"#);
    }

    #[test]
    fn a_missing_row_is_written_only_if_no_newer_delete_is_remembered() {
        let step = Statements(&table()).insert(&[], VERSION);
        let guard = "(d.deleted, d.node) > (timestamptz '2000-01-01 00:00:00.000001+00', 2)";
        assert!(step.sql.contains(guard), "{}", step.sql);
        assert!(
            step.sql.contains(r#"ON CONFLICT ("id") DO NOTHING"#),
            "{}",
            step.sql
        );
    }

    #[test]
    fn a_delete_is_remembered_with_its_version_or_left_to_the_stream() {
        let table = table();
        let statements = Statements(&table);
        let versioned = statements.delete(&[], Some(VERSION)).sql;
        assert!(
            versioned.contains("INSERT INTO tandem.tombstone"),
            "{versioned}"
        );
        let anew = statements.delete(&[], None).sql;
        assert!(!anew.contains("tombstone"), "{anew}");
    }
}
