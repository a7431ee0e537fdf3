//! The session in which one source's transactions are applied to one target.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tandem_wire::ServerError;
use tandem_wire::connect::{ConnectError, ConnectOptions, connect};
use tandem_wire::connection::{Connection, ConnectionError};
use tandem_wire::lsn::Lsn;
use thiserror::Error;
use tokio::sync::watch;

use super::batch::{Batch, Failure, Outcome, Statements, Step};
use super::load::{Asked, load_table};
use super::row::{BYTEA, PG_LSN, RowError, TIMESTAMPTZ, Value};
use super::sql::{ShapeError, TargetTable, Writer};
use crate::control::{Control, ControlError};
use crate::ddl::DdlError;
use crate::journal::{Hole, JournalError};
use crate::origin::OriginName;
use crate::relation::{Interner, Relation};
use crate::setup::{SetupError, application_name, evict};
use crate::shadow::Shadows;
use crate::tables::Tables;
use crate::transaction::{Change, Transaction};
use crate::version::PgTimestamp;

/// Prepared statements beyond which the session is opened anew, so that a stream of new shapes cannot fill the server.
const STATEMENTS_MAX: usize = 2000;

/// How long other transactions that write the same tables are waited for at once.
const WRITERS_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a transaction could not be applied. The session is given up in every case.
#[derive(Debug, Error)]
pub(crate) enum ApplyError {
    /// The target was not reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection was lost, or the server broke the protocol.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The target's catalog could not be read.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A statement cannot be encoded.
    #[error("cannot encode a statement: {0}")]
    Encode(#[from] io::Error),
    /// The change does not fit the target's table.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The change's values cannot be used.
    #[error(transparent)]
    Row(#[from] RowError),
    /// A command of the transaction cannot be told.
    #[error(transparent)]
    Ddl(#[from] DdlError),
    /// The target has no such table.
    #[error("table {0} does not exist on the target; create it there")]
    NoTable(String),
    /// The target refused a change.
    #[error("{0}")]
    Refused(ServerError),
    /// The source refuses to tell values that are not in the stream.
    #[error("a row has values that only its source has, and the source does not tell them: {0}")]
    NotFetched(String),
    /// The target does not even take it into its quarantine.
    #[error("a transaction cannot be put into the quarantine: {0}")]
    NotQuarantined(ServerError),
    /// The target's clock is behind the change's timestamp.
    #[error("the target's clock is {behind_us} us behind the source's commit")]
    ClockBehind {
        /// By how much, at least.
        behind_us: i64,
    },
    /// A table changed under us between two steps; trying again mends it.
    #[error(
        "a row changed while it was being applied, or a statement fails each time (a trigger that suppresses the row, keys that \
         are equal but print differently)"
    )]
    Raced,
    /// The catalog or the session answered something that it cannot answer.
    #[error("unexpected answer: {0}")]
    Unexpected(&'static str),
    /// Values that are not in the stream have to be fetched from the source, which is away.
    #[error("a row has values that only its source has, and the source is away")]
    SourceAway,
    /// The session before this one cannot be shown to have ended.
    #[error("the last session cannot be ended: {0}")]
    NotEnded(SetupError),
    /// The session has prepared so much that a new one is better.
    #[error("the session has prepared too many statements")]
    Worn,
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What the target needs is gone.
    #[error(
        "{target} lacks what {of} wrote {hole}. It has to be brought up to date by hand: compare the tables, copy what is missing, \
         then on {target} SELECT pg_replication_origin_advance('{origin}', '{}')",
        hole.to
    )]
    Hole {
        /// Name of the target.
        target: String,
        /// Name of the source.
        of: String,
        /// Under which the target remembers its progress.
        origin: OriginName,
        /// What is missing.
        hole: Hole,
    },
}

/// What an [`ApplyError`] means for the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    /// It passes by itself, so nobody needs to be told.
    Passing,
    /// The target is away.
    Connection,
    /// The same change will fail again until somebody mends the cause.
    Blocking,
}

impl ApplyError {
    pub(crate) fn severity(&self) -> Severity {
        match self {
            Self::ClockBehind { .. } | Self::Raced | Self::Worn => Severity::Passing,
            Self::Refused(error) | Self::Connection(ConnectionError::Server(error)) => {
                server_severity(&error.code)
            }
            Self::Connect(_)
            | Self::Connection(_)
            | Self::Control(_)
            | Self::NotEnded(_)
            | Self::SourceAway => Severity::Connection,
            _ => Severity::Blocking,
        }
    }
}

impl ApplyError {
    /// Whether the same transaction will fail again until somebody mends the cause.
    pub(crate) fn is_poison(&self) -> bool {
        match self {
            Self::Refused(error) | Self::Connection(ConnectionError::Server(error)) => {
                is_poison(&error.code)
            }
            Self::Shape(_)
            | Self::Row(_)
            | Self::Ddl(_)
            | Self::NoTable(_)
            | Self::NotFetched(_) => true,
            _ => false,
        }
    }
}

/// Whether an error is about the transaction, and not about the server's state at the moment: insufficient resources,
/// operator intervention, system errors.
pub(crate) fn is_poison(code: &str) -> bool {
    let environment = ["08", "53", "57", "58", "25", "28", "F0"];
    server_severity(code) == Severity::Blocking
        && !environment.iter().any(|class| code.starts_with(class))
}

/// Whether an error may come from what was known of tables that have changed since: syntax error or access rule violation
/// (undefined table, column, …), or a prepared statement whose shape has changed.
pub(super) fn is_about_schema(code: &str) -> bool {
    code.starts_with("42") || code == "0A000"
}

fn server_severity(code: &str) -> Severity {
    match code {
        // serialization_failure, deadlock_detected, lock_not_available, query_canceled, object_in_use (the origin is
        // still held by a session that is ending).
        "40001" | "40P01" | "55P03" | "57014" | "55006" => Severity::Passing,
        // operator_intervention: shutdown, crash_shutdown, cannot_connect_now.
        code if code.starts_with("57P") => Severity::Connection,
        _ => Severity::Blocking,
    }
}

/// What the session applies, and where.
#[derive(Clone)]
pub(crate) struct Place {
    /// The cluster's name.
    pub cluster: String,
    /// Node id of the source.
    pub source: u16,
    /// Node id of the target.
    pub target: u16,
    /// The target's connection.
    pub connect: ConnectOptions,
    /// The target's epoch, for the session's name.
    pub epoch: i64,
    /// The target's origin ids and the node ids they stand for.
    pub origins: Arc<HashMap<u32, u16>>,
    /// The target's control connection.
    pub control: Arc<Control>,
    /// Which of the target's tables have shadowed rows.
    pub shadows: Arc<Shadows>,
    /// What is replicated, and how.
    pub tables: Arc<Tables>,
    /// Shapes of the source's tables.
    pub interner: Arc<Interner>,
    /// The source's control connection, while there is one.
    pub source_control: watch::Receiver<Option<Arc<Control>>>,
}

impl Place {
    fn session_name(&self) -> String {
        let role = format!("apply {}", self.source);
        application_name(&self.cluster, self.epoch, &role)
    }

    /// Ends what is left of the last session. Its connection may be lost without its server knowing, so that it still
    /// holds the origin, or works on what was sent.
    ///
    /// # Errors
    /// When that cannot be shown.
    pub(super) async fn end_session(&self) -> Result<(), ApplyError> {
        let ended = evict(&self.control, &self.session_name()).await;
        ended.map_err(ApplyError::NotEnded)
    }
}

/// See the module.
pub(super) struct Session {
    pub(super) place: Place,
    pub(super) connection: Connection,
    pub(super) statements: Statements,
    pub(super) writer: Writer,
    tables: HashMap<u64, Arc<TargetTable>>,
    /// Whether it is inside of a transaction that changes the schema.
    inside: bool,
    /// Types of the conflicts that the transaction which is being applied has met.
    pub(super) conflicts: Vec<&'static str>,
}

/// What is pinned, so that settings of the role or the database do not leak in. `synchronous_commit` is off because
/// the slot is confirmed only after a flush of the target. Rows are found by their keys, however many there are or the
/// planner believes to be; a plan is made once.
const SETTINGS: &str = "SET session_replication_role = replica; SET synchronous_commit = off; SET lock_timeout = '10s'; \
    SET statement_timeout = 0; SET idle_in_transaction_session_timeout = '60s'; SET idle_session_timeout = 0; \
    SET datestyle = ISO; SET intervalstyle = postgres; SET extra_float_digits = 3; SET bytea_output = hex; \
    SET timezone = 'UTC'; SET client_encoding = 'UTF8'; SET search_path = pg_catalog; SET standard_conforming_strings = on; SET row_security = off; \
    SET default_transaction_read_only = off; SET default_transaction_isolation = 'read committed'; \
    SET default_transaction_deferrable = off; SET check_function_bodies = off; \
    SET jit = off; SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET plan_cache_mode = force_generic_plan; \
    SELECT set_config('log_min_messages', 'fatal', false) WHERE has_parameter_privilege('log_min_messages', 'SET')";

impl Session {
    /// Opens the session and takes the origin; answers how far the origin says it is.
    ///
    /// # Errors
    /// When the target is not reached, or the origin is still held by another session.
    pub(super) async fn open(place: Place) -> Result<(Self, Lsn), ApplyError> {
        let origin = OriginName {
            node: place.source,
            worker: 0,
        };
        let mut options = place.connect.clone();
        options
            .params
            .push(("application_name".to_owned(), place.session_name()));
        let mut connection = connect(&options).await?;
        connection.simple_query(SETTINGS).await?;
        connection
            .simple_query(&format!(
                "SELECT pg_replication_origin_session_setup('{origin}')"
            ))
            .await?;
        let rows = connection
            .simple_query(
                "SELECT coalesce(pg_replication_origin_session_progress(true), '0/0')::text",
            )
            .await?;
        let progress = rows
            .first()
            .and_then(|row| row.first()?.as_deref()?.parse().ok())
            .ok_or(ApplyError::Unexpected(
                "pg_replication_origin_session_progress",
            ))?;
        let writer = Writer::new(place.source, place.target, &place.origins);
        let mut session = Self {
            place,
            connection,
            statements: Statements::default(),
            writer,
            tables: HashMap::new(),
            inside: false,
            conflicts: Vec::new(),
        };
        session.prepare_fixed().await?;
        Ok((session, progress))
    }

    /// `setup` is the last statement before COMMIT. The clock is checked in WHERE, so that a failure leaves the
    /// session's origin values alone; `pg_current_xact_id` makes the commit move the origin even if no row changed.
    async fn prepare_fixed(&mut self) -> Result<(), ApplyError> {
        let fixed: [(&str, &str, &[u32]); 11] = [
            ("begin", "BEGIN", &[]),
            ("commit", "COMMIT", &[]),
            ("immediate", "SET CONSTRAINTS ALL IMMEDIATE", &[]),
            (
                "setup",
                "SELECT pg_replication_origin_xact_setup($1, $2), pg_current_xact_id() \
                 WHERE 1 / (clock_timestamp() > $2)::int = 1",
                &[PG_LSN, TIMESTAMPTZ],
            ),
            (
                "clock",
                "SELECT (extract(epoch FROM $1 - clock_timestamp()) * 1000000)::int8",
                &[TIMESTAMPTZ],
            ),
            (
                "conflict",
                CONFLICT,
                &[0, 0, 0, 0, TIMESTAMPTZ, 0, 0, TIMESTAMPTZ, 0],
            ),
            (
                "contest",
                CONTEST,
                &[0, 0, 0, 0, TIMESTAMPTZ, 0, 0, TIMESTAMPTZ, 0],
            ),
            (
                "quarantine",
                "INSERT INTO tandem.quarantine (source, lsn, committed, reason, behind, holds, payload) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING id",
                &[0, PG_LSN, TIMESTAMPTZ, 0, 0, 0, BYTEA],
            ),
            (
                "run",
                "INSERT INTO tandem.run (source, stamp, versions) VALUES ($1, $2, $3) RETURNING id",
                &[0, TIMESTAMPTZ, BYTEA],
            ),
            (
                "progress",
                "INSERT INTO tandem.progress VALUES ($1, $2, pg_current_xact_id()::text::int8 + 1) \
                 ON CONFLICT (origin) DO UPDATE SET lsn = excluded.lsn, xid = excluded.xid",
                &[0, PG_LSN],
            ),
            (
                "release",
                "WITH d AS (DELETE FROM tandem.quarantine WHERE id = $1 AND edits = $2 RETURNING 1) SELECT 1 / count(*) FROM d",
                &[0, 0],
            ),
        ];
        let mut batch = Batch::default();
        for (name, sql, types) in fixed {
            batch.parse_fixed(self.connection.out(), name, sql, types)?;
        }
        match self.run(batch).await?.failure {
            None => Ok(()),
            Some(failure) => Err(ApplyError::Refused(failure.error)),
        }
    }

    pub(super) async fn run(&mut self, batch: Batch) -> Result<Outcome, ApplyError> {
        Ok(batch
            .run(&mut self.connection, &mut self.statements)
            .await?)
    }

    /// Types of the conflicts that the last transaction of the slow path has met.
    pub(super) fn take_conflicts(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.conflicts)
    }

    /// Whether it has prepared so much that a new session is better.
    pub(super) fn is_worn(&self) -> bool {
        self.statements.len() > STATEMENTS_MAX
    }

    /// Loads the target's tables that a transaction touches.
    ///
    /// # Errors
    /// When one does not exist there.
    pub(super) async fn load_tables(
        &mut self,
        transaction: &Transaction,
    ) -> Result<(), ApplyError> {
        match self
            .load_known(&transaction.changes)
            .await?
            .into_values()
            .next()
        {
            Some(missing) => Err(ApplyError::NoTable(missing)),
            None => Ok(()),
        }
    }

    /// Loads the tables of some changes, asking for each once; answers the names of those that are not there, by the shape.
    ///
    /// # Errors
    /// When the target cannot be asked.
    pub(super) async fn load_known(
        &mut self,
        changes: &[Change],
    ) -> Result<HashMap<u64, String>, ApplyError> {
        let mut missing = HashMap::new();
        let mut seen = HashSet::new();
        for change in changes {
            if seen.insert(change.relation.id) {
                match self.load_table(&change.relation).await {
                    Ok(()) => {}
                    Err(ApplyError::NoTable(name)) => {
                        missing.insert(change.relation.id, name);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(missing)
    }

    pub(super) async fn load_table(&mut self, relation: &Relation) -> Result<(), ApplyError> {
        // One that was dropped may be there again.
        if self.tables.get(&relation.id).is_none_or(|table| table.gone) {
            let asked = if self.inside {
                Asked::Session(&mut self.connection)
            } else {
                Asked::Control(&self.place.control)
            };
            let policy = self.place.tables.policy(&relation.schema, &relation.name);
            let table = load_table(asked, relation, policy).await?;
            self.tables.insert(relation.id, Arc::new(table));
        }
        Ok(())
    }

    /// The schema has changed: tables are looked at anew when they are needed next, and statements made anew. `inside`: of
    /// the transaction that changes it, which only this session sees.
    pub(super) fn forget_schema(&mut self, inside: bool) {
        self.inside = inside;
        self.tables.clear();
        self.statements.forget();
    }

    /// Tables are looked at anew when they are needed next.
    pub(super) fn forget_tables(&mut self) {
        self.tables.clear();
    }

    pub(super) fn table(&self, relation: &Relation) -> Result<Arc<TargetTable>, ApplyError> {
        self.tables
            .get(&relation.id)
            .map(Arc::clone)
            .ok_or(ApplyError::Unexpected("table not loaded"))
    }

    /// Ends a transaction that failed. The session's origin values are those of the last transaction that was
    /// committed, so the abort cannot move the origin past the failed one.
    pub(super) async fn roll_back(&mut self, failure: &Failure) -> Result<(), ApplyError> {
        if failure.step == Some(Step::Commit) {
            // Here they are the failed transaction's own: only a new session is safe.
            return Err(ApplyError::Refused(failure.error.clone()));
        }
        if failure.in_transaction {
            self.connection.simple_query("ROLLBACK").await?;
        }
        Ok(())
    }

    /// How many transactions with this timestamp have been committed under the origin since it was last noted in
    /// `tandem.progress`: the proof that an origin which may have been moved by an abort was moved by a commit.
    ///
    /// # Errors
    /// When the target cannot be asked.
    pub(super) async fn committed_with(&self, timestamp: PgTimestamp) -> Result<i64, ApplyError> {
        let origin = OriginName {
            node: self.place.source,
            worker: 0,
        }
        .to_string();
        let rows = self
            .place
            .control
            .query(
                "SELECT count(*) FROM tandem.progress p, pg_replication_origin o, \
                 generate_series(p.xid, pg_snapshot_xmax(pg_current_snapshot())::text::int8 - 1) x, \
                 pg_xact_commit_timestamp_origin((x % 4294967296)::text::xid) v \
                 WHERE p.origin = $1 AND o.roname = $1 AND x % 4294967296 > 2 AND v.roident = o.roident \
                 AND v.timestamp = timestamptz '2000-01-01 00:00:00+00' + make_interval(secs => $2::int8 / 1000000) \
                   + ($2::int8 % 1000000) * interval '1 microsecond'",
                &[&origin, &timestamp],
            )
            .await?;
        let row = rows.first().ok_or(ApplyError::Unexpected("count"))?;
        Ok(row.try_get(0).map_err(ControlError::from)?)
    }

    /// Up to where everything is noted to be committed.
    ///
    /// # Errors
    /// When the target cannot be asked.
    pub(super) async fn noted_progress(&self) -> Result<Lsn, ApplyError> {
        let origin = OriginName {
            node: self.place.source,
            worker: 0,
        }
        .to_string();
        let sql = "SELECT lsn::text FROM tandem.progress WHERE origin = $1";
        let rows = self.place.control.query(sql, &[&origin]).await?;
        let noted: Option<String> = rows
            .first()
            .map(|row| row.try_get(0))
            .transpose()
            .map_err(ControlError::from)?;
        let noted = noted.as_deref().unwrap_or("0/0").parse();
        noted.map_err(|_| ApplyError::Unexpected("tandem.progress"))
    }

    /// Notes that everything up to `lsn` is committed. The caller has no batch under way.
    ///
    /// # Errors
    /// When the target cannot be asked.
    pub(super) async fn note_progress(&self, lsn: Lsn) -> Result<(), ApplyError> {
        let origin = OriginName {
            node: self.place.source,
            worker: 0,
        }
        .to_string();
        self.place
            .control
            .query(
                "INSERT INTO tandem.progress VALUES ($1, $2::text::pg_lsn, pg_snapshot_xmax(pg_current_snapshot())::text::int8) \
                 ON CONFLICT (origin) DO UPDATE SET lsn = excluded.lsn, xid = excluded.xid",
                &[&origin, &lsn.to_string()],
            )
            .await?;
        Ok(())
    }

    /// Waits until the transactions that are writing some tables now have ended.
    ///
    /// # Errors
    /// When one of them takes longer than the lock timeout; what they are waited for is then tried again.
    pub(super) async fn wait_for_writers(&self, mut tables: Vec<String>) -> Result<(), ApplyError> {
        tables.sort();
        tables.dedup();
        let writers = "SELECT array_agg(DISTINCT virtualtransaction) FROM pg_locks WHERE locktype = 'relation' \
             AND mode = 'RowExclusiveLock' AND granted AND relation IN (SELECT to_regclass(t) FROM unnest($1::text[]) t) \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
             AND ($2::text[] IS NULL OR virtualtransaction = ANY ($2))";
        let mut waiting_for: Option<Vec<String>> = None;
        let deadline = tokio::time::Instant::now() + WRITERS_TIMEOUT;
        loop {
            let rows = self
                .place
                .control
                .query(writers, &[&tables, &waiting_for])
                .await?;
            let row = rows.first().ok_or(ApplyError::Unexpected("pg_locks"))?;
            waiting_for = row.try_get(0).map_err(ControlError::from)?;
            if waiting_for.is_none() {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                return Err(ApplyError::Raced);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(super) fn finish(
        &mut self,
        batch: &mut Batch,
        transaction: &Transaction,
        deferrable: bool,
    ) -> io::Result<()> {
        self.finish_at(
            batch,
            transaction.end_lsn,
            transaction.timestamp,
            deferrable,
        )
    }

    /// Commits what was applied up to `end_lsn` under a timestamp.
    pub(super) fn finish_at(
        &mut self,
        batch: &mut Batch,
        end_lsn: Lsn,
        timestamp: PgTimestamp,
        deferrable: bool,
    ) -> io::Result<()> {
        let out = self.connection.out();
        if deferrable {
            batch.execute(out, "immediate", &[], Step::Work)?;
        }
        let stamp = [Value::Lsn(end_lsn), Value::Timestamp(timestamp)];
        batch.execute(out, "setup", &stamp, Step::Work)?;
        batch.execute(out, "commit", &[], Step::Commit)
    }
}

const CONFLICT: &str = "INSERT INTO tandem.conflict (relation, type, resolver, outcome, local_image, local_timestamp, \
    local_node, remote_image, remote_timestamp, remote_node) \
    VALUES ($1, $2, 'last_update_wins', $3, $4::json, $5, $6, $7::json, $8, $9)";

/// The same for a conflict that a layered resolver has yet to settle.
const CONTEST: &str = "INSERT INTO tandem.conflict (relation, type, outcome, resolver, local_image, local_timestamp, \
    local_node, remote_image, remote_timestamp, remote_node) \
    VALUES ($1, $2, 'pending', $3, $4::json, $5, $6, $7::json, $8, $9)";
