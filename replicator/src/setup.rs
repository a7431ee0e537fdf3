//! Makes a node ours: ownership, Tandem's schema, publication, slot, origins, and how far everything is.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tandem_wire::lsn::Lsn;
use thiserror::Error;

use crate::check::{NO_DDL, Problem, check};
use crate::control::{Control, ControlError};
use crate::origin::{OriginName, REPAIR};
use crate::tables::Tables;
use crate::{counters, ddl, identity};

/// Both halves of the advisory lock that a daemon holds on each node it owns: "tndm", and a hash of the cluster.
const OWNER_LOCK: &str = "1953391725, hashtext($1)";

/// How long sessions of an older daemon may take to end after they were told to.
const EVICTION_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a node cannot be used at the moment.
#[derive(Debug, Error)]
pub(crate) enum SetupError {
    /// It cannot be reached or asked.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Settings or rights are missing.
    #[error("{}", list(.0))]
    Requirements(Vec<Problem>),
    /// Another daemon owns it.
    #[error("another daemon owns this node ({0}); stop that one first")]
    Owned(String),
    /// Another daemon owns a node that comes before it.
    #[error("another daemon owns node {0}, which is taken before this one")]
    NotItsTurn(String),
    /// Sessions of an older daemon do not end.
    #[error("{0} sessions of an older daemon are still connected")]
    NotEvicted(i64),
    /// The slot that held the node's changes is gone: what was written since is not in any stream.
    #[error(
        "replication slot {slot} is {state}: changes of this node may be missing on the others; compare the tables, copy what \
         is missing, then DELETE FROM tandem.slot on this node to let a new slot start from here"
    )]
    SlotLost {
        /// Its name.
        slot: String,
        /// What became of it.
        state: &'static str,
    },
    /// The reader of its stream cannot be started, or broke down.
    #[error("the reader of the node's stream ended: {0}")]
    Capture(std::io::Error),
    /// A link into it cannot be started, or broke down.
    #[error("a link into the node ended: {0}")]
    Link(std::io::Error),
    /// A row that a catalog query must return is missing.
    #[error("unexpected answer from the catalog: {0}")]
    Unexpected(&'static str),
}

fn list(problems: &[Problem]) -> String {
    let texts: Vec<_> = problems
        .iter()
        .map(|problem| format!("{} ({})", problem.what, problem.hint))
        .collect();
    texts.join("; ")
}

/// How far one source is applied on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OriginProgress {
    /// Everything up to here is committed, surely.
    pub applied: Lsn,
    /// What the server's origin says, where that is further and has to be proved: from PostgreSQL 16 on an aborted
    /// transaction moves it too (src/backend/access/transam/xact.c, `RecordTransactionAbort`).
    pub unproved: Option<Lsn>,
}

/// What a node is like once it is ours.
#[derive(Debug, Clone)]
pub(crate) struct NodeFacts {
    /// `server_version_num`.
    pub version: i32,
    /// Counts the daemons (and reconnects) that have owned the node.
    pub epoch: i64,
    /// Origin ids of this node and the node ids they stand for.
    pub origins: HashMap<u32, u16>,
    /// Progress by source node id.
    pub progress: HashMap<u16, OriginProgress>,
    /// The slot.
    pub slot: SlotFacts,
}

/// What a node says about its slot and the journal that is read from it.
#[derive(Debug, Clone)]
pub(crate) struct SlotFacts {
    /// Up to where it is confirmed.
    pub confirmed: Lsn,
    /// Where it was created.
    pub created: Lsn,
    /// Id of the journal that was last used.
    pub journal: Option<u64>,
    /// A transaction ends here, and every target that is not carried has it.
    pub floor: Lsn,
    /// Targets without which the slot may have moved on, and up to where each surely has everything.
    pub carried: BTreeMap<u16, Lsn>,
}

/// The name of the slot that a node's changes are read from: one per cluster on each server.
pub fn slot_name(cluster: &str) -> String {
    format!("tandem_{cluster}")
}

/// `application_name` of a session: sessions of older epochs are recognised by it.
pub(crate) fn application_name(cluster: &str, epoch: i64, role: &str) -> String {
    format!("tandem:{cluster}:{epoch}:{role}")
}

/// Makes the node, if it is fit for a cluster of so many nodes, this daemon's own as long as the connection lives.
///
/// # Errors
/// See [`SetupError`].
pub(crate) async fn own(
    control: &Control,
    cluster: &str,
    members: usize,
    tables: &Tables,
) -> Result<(), SetupError> {
    let fatal: Vec<_> = check(control, members, &tables.filter)
        .await?
        .into_iter()
        .filter(|problem| problem.fatal)
        .collect();
    if !fatal.is_empty() {
        return Err(SetupError::Requirements(fatal));
    }
    lock(control, cluster).await
}

/// Prepares a node that this daemon [owns](own) for a cluster with the given node ids.
///
/// Order matters: nobody else applies here once the older sessions are gone, so progress that is read after that
/// is final.
///
/// # Errors
/// See [`SetupError`]. Everything done so far is harmless to repeat.
pub(crate) async fn take(
    control: &Control,
    cluster: &str,
    members: &[u16],
    tables: &Tables,
) -> Result<NodeFacts, SetupError> {
    control.execute(SCHEMA).await?;
    let epoch = next_epoch(control, cluster).await?;
    evict(control, &format!("tandem:{cluster}")).await?;
    let unfit = counters::prepare(control, tables).await?;
    if !unfit.is_empty() {
        return Err(SetupError::Requirements(unfit));
    }
    control
        .execute(
            "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = 'tandem') THEN \
             CREATE PUBLICATION tandem FOR ALL TABLES; END IF; END $$",
        )
        .await?;
    let unfit = identity::prepare(control, tables).await?;
    if !unfit.is_empty() {
        return Err(SetupError::Requirements(unfit));
    }
    if !ddl::install(control, tables, members.len()).await? {
        tracing::warn!("replication: {}; {}", NO_DDL.0, NO_DDL.1);
    }
    let slot = slot(control, &slot_name(cluster)).await?;
    let workers = |&node| [0, REPAIR].map(|worker| OriginName { node, worker }.to_string());
    for name in members.iter().flat_map(workers) {
        control
            .query(
                "SELECT pg_replication_origin_create($1) WHERE NOT EXISTS \
                 (SELECT FROM pg_replication_origin WHERE roname = $1)",
                &[&name],
            )
            .await?;
    }
    let version = control
        .query("SELECT current_setting('server_version_num')::int4", &[])
        .await?
        .first()
        .map(|row| row.try_get(0))
        .ok_or(SetupError::Unexpected("server_version_num"))?
        .map_err(ControlError::from)?;
    let (origins, progress) = origins(control, version).await?;
    Ok(NodeFacts {
        version,
        epoch,
        origins,
        progress,
        slot,
    })
}

/// Tandem's own tables. `tandem.progress` holds, for an origin, a position up to which everything is surely
/// committed, and a transaction id that every later commit of the origin is above. `tandem.tombstone` remembers
/// deletes (see `apply/tombstone.rs`). `tandem.journal` and `tandem.carried` say which journal the slot is read into and
/// which targets (node ids) depend on it (see `carry.rs`). Before a slot's `created_lsn` was kept, slots were confirmed
/// only to what all targets had, so the slot's position serves as well.
/// `tandem.upheld` says for which write a node's own one stands (see `resolve.rs`).
/// `tandem.run` holds the stamps of runs and, while an older change may arrive, what their rows really are (see `runs.rs`).
/// `tandem.dropped` names tables and columns (`''`: the table) that are gone (see `ddl/capture.sql`).
/// `tandem.clock` holds the newest timestamp that the node has given or taken, a transaction id before which its clock was
/// right, and whether it is behind that timestamp now (see `clock/guard.rs`).
/// `tandem.conflict.operation` says what the remote write did where the type does
/// not, `tandem.quarantine.edits` counts an operator's edits of the payload.
const SCHEMA: &str = "
    CREATE SCHEMA IF NOT EXISTS tandem;
    CREATE TABLE IF NOT EXISTS tandem.owner (cluster text PRIMARY KEY, epoch bigint NOT NULL, acquired timestamptz NOT NULL);
    CREATE TABLE IF NOT EXISTS tandem.slot (name text PRIMARY KEY, created timestamptz NOT NULL);
    ALTER TABLE tandem.slot ADD COLUMN IF NOT EXISTS created_lsn pg_lsn;
    CREATE TABLE IF NOT EXISTS tandem.journal (slot text PRIMARY KEY, id text NOT NULL, floor pg_lsn NOT NULL);
    CREATE TABLE IF NOT EXISTS tandem.carried (slot text, target int, lsn pg_lsn NOT NULL, PRIMARY KEY (slot, target));
    CREATE TABLE IF NOT EXISTS tandem.clock (
        id boolean PRIMARY KEY DEFAULT true, newest timestamptz NOT NULL, xid bigint NOT NULL, set_back boolean NOT NULL);
    CREATE TABLE IF NOT EXISTS tandem.dropped (
        relation text, column_name text, dropped timestamptz NOT NULL, PRIMARY KEY (relation, column_name));
    CREATE TABLE IF NOT EXISTS tandem.progress (origin text PRIMARY KEY, lsn pg_lsn NOT NULL, xid bigint NOT NULL);
    CREATE TABLE IF NOT EXISTS tandem.tombstone (
        relation text, key jsonb, deleted timestamptz NOT NULL, node int NOT NULL,
        id bigint GENERATED BY DEFAULT AS IDENTITY, counters jsonb, PRIMARY KEY (relation, key));
    CREATE TABLE IF NOT EXISTS tandem.kept (
        relation text, key jsonb, writer xid NOT NULL, written timestamptz NOT NULL, node int NOT NULL,
        PRIMARY KEY (relation, key));
    CREATE TABLE IF NOT EXISTS tandem.upheld (
        relation text, key jsonb, writer xid NOT NULL, written timestamptz NOT NULL, node int NOT NULL,
        own timestamptz NOT NULL, own_node int NOT NULL, PRIMARY KEY (relation, key));
    CREATE TABLE IF NOT EXISTS tandem.run (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, source int NOT NULL, stamp timestamptz NOT NULL,
        versions bytea);
    ALTER TABLE tandem.run ALTER versions SET STORAGE EXTERNAL;
    CREATE TABLE IF NOT EXISTS tandem.incomplete (relation text, key jsonb, PRIMARY KEY (relation, key));
    CREATE TABLE IF NOT EXISTS tandem.shadow (
        relation text, key jsonb, image jsonb NOT NULL, written timestamptz NOT NULL, node int NOT NULL,
        PRIMARY KEY (relation, key));
    CREATE TABLE IF NOT EXISTS tandem.debt (
        relation text, digest text, image jsonb NOT NULL, count bigint NOT NULL, PRIMARY KEY (relation, digest));
    CREATE TABLE IF NOT EXISTS tandem.quarantine (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, source int NOT NULL, lsn pg_lsn NOT NULL,
        committed timestamptz NOT NULL, quarantined timestamptz NOT NULL DEFAULT clock_timestamp(), reason text NOT NULL,
        behind bigint, attempts int NOT NULL DEFAULT 0, edits int NOT NULL DEFAULT 0,
        holds jsonb NOT NULL, payload bytea NOT NULL);
    CREATE TABLE IF NOT EXISTS tandem.conflict (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        detected timestamptz NOT NULL DEFAULT clock_timestamp(),
        relation text NOT NULL, type text NOT NULL, operation text, resolver text NOT NULL, outcome text NOT NULL,
        local_image json, local_timestamp timestamptz, local_node int,
        remote_image json, remote_timestamp timestamptz NOT NULL, remote_node int NOT NULL, reapplied timestamptz);
    DO $$ BEGIN IF to_regclass('tandem.conflict_pending') IS NULL THEN
        CREATE INDEX conflict_pending ON tandem.conflict (remote_timestamp, remote_node, id) WHERE outcome = 'pending';
    END IF; END $$;
";

async fn lock(control: &Control, cluster: &str) -> Result<(), SetupError> {
    let sql = format!("SELECT pg_try_advisory_lock({OWNER_LOCK})");
    let rows = control.query(&sql, &[&cluster]).await?;
    let taken: bool = rows
        .first()
        .ok_or(SetupError::Unexpected("pg_try_advisory_lock"))?
        .try_get(0)
        .map_err(ControlError::from)?;
    if taken {
        return Ok(());
    }
    let holder = control
        .query(
            "SELECT format('pid %s from %s, connected since %s', a.pid, coalesce(host(a.client_addr), 'a local socket'), \
             a.backend_start) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid WHERE l.locktype = 'advisory' \
             AND l.granted AND l.classid = 1953391725 AND l.objsubid = 2 \
             AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            &[],
        )
        .await?;
    let holder = holder.first().and_then(|row| row.try_get(0).ok());
    Err(SetupError::Owned(
        holder.unwrap_or_else(|| "which just left".to_owned()),
    ))
}

async fn next_epoch(control: &Control, cluster: &str) -> Result<i64, SetupError> {
    let rows = control
        .query(
            "INSERT INTO tandem.owner AS o VALUES ($1, 1, clock_timestamp()) ON CONFLICT (cluster) DO UPDATE \
             SET epoch = o.epoch + 1, acquired = clock_timestamp() RETURNING epoch",
            &[&cluster],
        )
        .await?;
    let row = rows.first().ok_or(SetupError::Unexpected("tandem.owner"))?;
    Ok(row.try_get(0).map_err(ControlError::from)?)
}

/// Ends every session of this name, or whose name goes on behind it, and waits until they are gone: one of them may
/// still be working on a batch that was sent before its daemon died or its connection was lost.
///
/// # Errors
/// When the node cannot be asked, or a session does not end.
pub(crate) async fn evict(control: &Control, name: &str) -> Result<(), SetupError> {
    let deadline = tokio::time::Instant::now() + EVICTION_TIMEOUT;
    loop {
        let rows = control
            .query(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                 WHERE (application_name = $1 OR starts_with(application_name, $1 || ':')) AND pid <> pg_backend_pid() \
                 AND datname = current_database()",
                &[&name],
            )
            .await?;
        let left: i64 = rows
            .first()
            .ok_or(SetupError::Unexpected("pg_stat_activity"))?
            .try_get(0)
            .map_err(ControlError::from)?;
        if left == 0 {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            return Err(SetupError::NotEvicted(left));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn slot(control: &Control, name: &str) -> Result<SlotFacts, SetupError> {
    let known = control
        .query(
            "SELECT created_lsn IS NOT NULL FROM tandem.slot WHERE name = $1",
            &[&name],
        )
        .await?;
    let has_position: Option<bool> = known
        .first()
        .map(|row| row.try_get(0))
        .transpose()
        .map_err(ControlError::from)?;
    let found = control
        .query(
            "SELECT coalesce(confirmed_flush_lsn, '0/0')::text, coalesce(wal_status, '') = 'lost' \
             FROM pg_replication_slots WHERE slot_name = $1",
            &[&name],
        )
        .await?;
    let confirmed = match found.first() {
        Some(row) => {
            if row.try_get(1).map_err(ControlError::from)? {
                return Err(SetupError::SlotLost {
                    slot: name.to_owned(),
                    state: "invalidated",
                });
            }
            lsn(row, 0)?
        }
        None if has_position.is_some() => {
            return Err(SetupError::SlotLost {
                slot: name.to_owned(),
                state: "gone",
            });
        }
        None => {
            let rows = control
                .query(
                    "SELECT lsn::text FROM pg_create_logical_replication_slot($1, 'pgoutput')",
                    &[&name],
                )
                .await?;
            let row = rows
                .first()
                .ok_or(SetupError::Unexpected("pg_create_logical_replication_slot"))?;
            lsn(row, 0)?
        }
    };
    match has_position {
        Some(true) => {}
        Some(false) => {
            let sql = "UPDATE tandem.slot SET created_lsn = $2::text::pg_lsn WHERE name = $1";
            control.query(sql, &[&name, &confirmed.to_string()]).await?;
        }
        // What a slot before this one had for a journal means nothing any more.
        None => {
            let sql = "WITH j AS (DELETE FROM tandem.journal WHERE slot = $1), \
                 c AS (DELETE FROM tandem.carried WHERE slot = $1) \
                 INSERT INTO tandem.slot VALUES ($1, clock_timestamp(), $2::text::pg_lsn)";
            control.query(sql, &[&name, &confirmed.to_string()]).await?;
        }
    }
    slot_facts(control, name, confirmed).await
}

async fn slot_facts(
    control: &Control,
    name: &str,
    confirmed: Lsn,
) -> Result<SlotFacts, SetupError> {
    let rows = control
        .query(
            "SELECT s.created_lsn::text, coalesce(j.floor, s.created_lsn)::text, j.id FROM tandem.slot s \
             LEFT JOIN tandem.journal j ON j.slot = s.name WHERE s.name = $1",
            &[&name],
        )
        .await?;
    let row = rows.first().ok_or(SetupError::Unexpected("tandem.slot"))?;
    let id: Option<String> = row.try_get(2).map_err(ControlError::from)?;
    let journal = id
        .map(|id| u64::from_str_radix(&id, 16))
        .transpose()
        .map_err(|_| SetupError::Unexpected("tandem.journal"))?;
    let sql = "SELECT lsn::text, target FROM tandem.carried WHERE slot = $1";
    let mut carried = BTreeMap::new();
    for row in control.query(sql, &[&name]).await? {
        let target: i32 = row.try_get(1).map_err(ControlError::from)?;
        let target = u16::try_from(target).map_err(|_| SetupError::Unexpected("tandem.carried"))?;
        carried.insert(target, lsn(&row, 0)?);
    }
    Ok(SlotFacts {
        confirmed,
        created: lsn(row, 0)?,
        journal,
        floor: lsn(row, 1)?,
        carried,
    })
}

fn lsn(row: &tokio_postgres::Row, column: usize) -> Result<Lsn, SetupError> {
    let text: String = row.try_get(column).map_err(ControlError::from)?;
    text.parse()
        .map_err(|_| SetupError::Unexpected("a position in the WAL"))
}

type Origins = (HashMap<u32, u16>, HashMap<u16, OriginProgress>);

async fn origins(control: &Control, version: i32) -> Result<Origins, SetupError> {
    let rows = control
        .query(
            "SELECT o.roident, o.roname, coalesce(pg_replication_origin_progress(o.roname, true), '0/0')::text, \
             p.lsn::text FROM pg_replication_origin o LEFT JOIN tandem.progress p ON p.origin = o.roname \
             WHERE o.roname LIKE 'tandem\\_%'",
            &[],
        )
        .await?;
    let mut ids = HashMap::new();
    let mut progress = HashMap::new();
    for row in rows {
        let name: String = row.try_get(1).map_err(ControlError::from)?;
        let Some(origin) = OriginName::parse(&name) else {
            continue;
        };
        let parse = |text: String| {
            text.parse::<Lsn>()
                .map_err(|_| SetupError::Unexpected("pg_replication_origin_progress"))
        };
        let said = parse(row.try_get(2).map_err(ControlError::from)?)?;
        let proved = row
            .try_get::<_, Option<String>>(3)
            .map_err(ControlError::from)?
            .map(parse)
            .transpose()?;
        ids.insert(row.try_get(0).map_err(ControlError::from)?, origin.node);
        if origin.worker == 0 {
            progress.insert(origin.node, judge_progress(version, said, proved));
        }
    }
    Ok((ids, progress))
}

/// Up to PostgreSQL 15 the origin moves with commits only; later it has to be proved beyond what was noted.
fn judge_progress(version: i32, said: Lsn, proved: Option<Lsn>) -> OriginProgress {
    let proved = proved.unwrap_or(Lsn(0)).min(said);
    if version < 160_000 || said == proved {
        OriginProgress {
            applied: said,
            unproved: None,
        }
    } else {
        OriginProgress {
            applied: proved,
            unproved: Some(said),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_16_on_progress_beyond_the_note_has_to_be_proved() {
        let judged = |version, said, proved: Option<u64>| {
            judge_progress(version, Lsn(said), proved.map(Lsn))
        };
        assert_eq!(
            judged(150_018, 90, Some(40)),
            OriginProgress {
                applied: Lsn(90),
                unproved: None
            }
        );
        assert_eq!(
            judged(160_000, 90, Some(40)),
            OriginProgress {
                applied: Lsn(40),
                unproved: Some(Lsn(90))
            }
        );
        assert_eq!(
            judged(180_006, 90, Some(90)),
            OriginProgress {
                applied: Lsn(90),
                unproved: None
            }
        );
        assert_eq!(
            judged(180_006, 0, None),
            OriginProgress {
                applied: Lsn(0),
                unproved: None
            }
        );
    }

    #[test]
    fn a_target_that_lost_its_unflushed_tail_is_where_its_origin_says() {
        // The note is flushed on its own and could be ahead of what the crash left.
        assert_eq!(
            judge_progress(180_000, Lsn(30), Some(Lsn(40))),
            OriginProgress {
                applied: Lsn(30),
                unproved: None
            }
        );
    }
}
