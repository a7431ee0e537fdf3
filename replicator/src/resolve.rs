//! Settles the conflicts of tables with a layered resolver (see `conflict/resolver.rs`).
//!
//! A link that finds an older write to have lost against the node's own logs it as pending, in the commit that applies it.
//! Here each such line is settled, in one local transaction: under the row's lock, the policy says whether the losing write
//! should have won; then its row is written again, as a new change of this node, and the line says who lost. A line is
//! settled once, whatever is killed in between. `tandem.upheld` remembers for which write a row, or a delete, of this node
//! stands; it counts only while that is what stands there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::Row;

use crate::apply::is_poison;
use crate::conflict::resolver::Standing;
use crate::node::Shared;
use crate::operator::reapply::{Existing, Lost, statement};
use crate::operator::target::{Target, names};
use crate::operator::{OperatorError, Session};
use crate::origin::OriginName;
use crate::version::{PgTimestamp, Version, microseconds_sql};

/// `tandem.conflict.outcome` of a line that is not settled yet.
pub(crate) const PENDING: &str = "pending";

/// Pause before a line that could not be settled is tried again: a client holds its row, or the node is away.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Replica role, as whatever is applied: the write's own node has run its triggers. A client that holds the row keeps the
/// node's links waiting for so long.
const SETTINGS: &str = "SET session_replication_role = replica; SET lock_timeout = '1s'";

/// The conflicts of one node that wait to be settled.
#[derive(Debug, Default)]
pub(crate) struct Contests {
    raised: watch::Sender<u64>,
    settled: watch::Sender<u64>,
    rewritten: AtomicU64,
}

impl Contests {
    /// There may be a pending line that was not there before.
    pub(crate) fn raise(&self) {
        self.raised.send_modify(|raised| *raised += 1);
    }

    /// Waits until all that was raised before is settled.
    pub(crate) async fn idle(&self) {
        let upto = *self.raised.borrow();
        // The sender lives in self, so the channel cannot close under us.
        let _ = self
            .settled
            .subscribe()
            .wait_for(|settled| *settled >= upto)
            .await;
    }

    /// How many writes were written again since the daemon started.
    pub(crate) fn rewritten(&self) -> u64 {
        self.rewritten.load(Ordering::Acquire)
    }
}

/// Settles a node's conflicts for ever.
pub(crate) async fn keep(shared: Arc<Shared>, index: usize) {
    let Some(contests) = shared.contests.get(index) else {
        return;
    };
    let mut news = contests.raised.subscribe();
    // What an earlier daemon has left.
    contests.raise();
    loop {
        let upto = *news.borrow_and_update();
        match settle_all(&shared, index, contests).await {
            Ok(()) => {
                contests
                    .settled
                    .send_modify(|settled| *settled = upto.max(*settled));
                if news.changed().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "replication: a conflict is not settled yet");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

async fn settle_all(
    shared: &Arc<Shared>,
    index: usize,
    contests: &Contests,
) -> Result<(), OperatorError> {
    let session = Session::open(shared, index).await?;
    session.execute(SETTINGS).await?;
    let sql = format!(
        "SELECT id FROM tandem.conflict WHERE outcome = '{PENDING}' ORDER BY remote_timestamp, remote_node, id LIMIT 1"
    );
    while let Some(row) = session.query(&sql, &[]).await?.first() {
        let line: i64 = session.get(row, 0)?;
        // Links must not write between the look at the row and the write.
        let Some(gate) = shared.gates.get(index) else {
            return Ok(());
        };
        let _alone = gate.write().await;
        let settling = Settling {
            shared,
            session: &session,
            line,
        };
        session.execute("BEGIN").await?;
        match settling.settle().await {
            Ok(rewritten) => {
                session.execute("COMMIT").await?;
                contests
                    .rewritten
                    .fetch_add(u64::from(rewritten), Ordering::AcqRel);
            }
            Err(error) if error.server_code().is_some_and(is_poison) => {
                // The node refuses the row, whoever writes it: the newest version stays.
                tracing::warn!(node = session.node.name, line, %error, "replication: a write that should have won is refused");
                session.execute("ROLLBACK").await?;
                settling.keep_newest().await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What stands under a key.
struct Found {
    key: String,
    /// The row; `None` where there is none.
    image: Option<String>,
    standing: Option<Standing>,
}

/// One line that is being settled.
struct Settling<'a> {
    shared: &'a Shared,
    session: &'a Session,
    line: i64,
}

impl Settling<'_> {
    /// Settles the line; answers whether its write was written again.
    async fn settle(&self) -> Result<bool, OperatorError> {
        let session = self.session;
        let sql = format!(
            "SELECT relation, type LIKE 'delete\\_%', remote_image::text, {}, remote_node FROM tandem.conflict \
             WHERE id = $1 FOR UPDATE",
            microseconds_sql("remote_timestamp")
        );
        let rows = session.query(&sql, &[&self.line]).await?;
        let Some(row) = rows.first() else {
            return Ok(false);
        };
        let image: Option<String> = session.get(row, 2)?;
        let loser = Version {
            timestamp: session.get(row, 3)?,
            node: Self::node(session.get(row, 4)?),
        };
        let table = Target::load(session, session.get(row, 0)?).await?;
        let lost = Lost::new(image.unwrap_or_default(), session.get(row, 1)?);
        if let (Some(target), Ok(lost)) = (table.filter(|table| !table.key().is_empty()), lost)
            && self.write_again(&target, &lost, loser).await?
        {
            return Ok(true);
        }
        self.keep_newest().await?;
        Ok(false)
    }

    /// The write that lost has lost.
    async fn keep_newest(&self) -> Result<(), OperatorError> {
        let sql = "UPDATE tandem.conflict SET outcome = 'local' WHERE id = $1";
        self.session.query(sql, &[&self.line]).await?;
        Ok(())
    }

    /// Writes the losing write again if the policy prefers it to what stands there, which is then logged as the loser.
    async fn write_again(
        &self,
        target: &Target,
        lost: &Lost,
        loser: Version,
    ) -> Result<bool, OperatorError> {
        let tables = &self.shared.config.tables;
        let resolver = &tables.policy(&target.schema, &target.name).resolver;
        // Once more where a client inserts the row meanwhile, or deletes it.
        for _ in 0..2 {
            let Some(found) = self.find(target, lost).await? else {
                continue;
            };
            let Some(standing) = found.standing else {
                return Ok(false);
            };
            let existing = match found.image {
                Some(_) => Existing::Overwritten,
                None => Existing::Kept,
            };
            let Ok(statement) = statement(target, lost, existing) else {
                return Ok(false);
            };
            if !resolver.prefers(loser, standing) {
                return Ok(false);
            }
            let written = self.session.query(&statement.sql, &[&lost.image]).await?;
            if !written.is_empty() {
                self.note(target, &found, loser, standing).await?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Locks the row under the image's key and reads what stands there; what another node wrote does not stand, nor does a
    /// TRUNCATE, which names no row (node 0 in the query).
    async fn find(&self, target: &Target, lost: &Lost) -> Result<Option<Found>, OperatorError> {
        let (name, same_key, key) = (target.qualified(), target.same_key(), target.key());
        let record = target.record("$1::text", lost.is_text, &key);
        // Read in a statement of its own: this one may have waited for the lock.
        let lock =
            format!("SELECT 1 FROM ONLY {name} AS r, {record} WHERE {same_key} FOR UPDATE OF r");
        self.session.query(&lock, &[&lost.image]).await?;
        let names = names(&key, "n.");
        let sql = format!(
            "SELECT n.key::text, r.image, {written}, r.kept_node, r.origin, {deleted}, d.node, {writer}, {upheld}, u.node, {own}, u.own_node, \
             {now}, EXISTS (SELECT FROM tandem.shadow h WHERE h.relation = $2 AND h.key = n.key) FROM (SELECT jsonb_build_array({names}) AS key, {names} FROM {record}) n \
             LEFT JOIN LATERAL (SELECT row_to_json(r.*)::text AS image, coalesce(k.written, pg_xact_commit_timestamp(r.xmin)) AS written, \
               k.node AS kept_node, (SELECT o.roname FROM pg_replication_origin o, pg_xact_commit_timestamp_origin(r.xmin) v \
                 WHERE o.roident = v.roident) AS origin FROM ONLY {name} AS r LEFT JOIN tandem.kept k \
               ON k.relation = $2 AND k.key = n.key AND k.writer = r.xmin WHERE {same_key}) r ON true \
             LEFT JOIN LATERAL (SELECT d.deleted, CASE WHEN d.key = '[]' THEN 0 ELSE d.node END AS node FROM tandem.tombstone d WHERE d.relation = $2 \
               AND d.key IN (n.key, '[]') ORDER BY d.deleted DESC, d.node DESC LIMIT 1) d ON true \
             LEFT JOIN tandem.upheld u ON u.relation = $2 AND u.key = n.key",
            written = microseconds_sql("r.written"),
            deleted = microseconds_sql("d.deleted"),
            writer = microseconds_sql("pg_xact_commit_timestamp(u.writer)"),
            upheld = microseconds_sql("u.written"),
            own = microseconds_sql("u.own"),
            now = microseconds_sql("clock_timestamp()"),
        );
        let rows = self.session.query(&sql, &[&lost.image, &name]).await?;
        rows.first().map(|row| self.found(row)).transpose()
    }

    fn found(&self, row: &Row) -> Result<Found, OperatorError> {
        let session = self.session;
        let time = |column| session.get::<Option<PgTimestamp>>(row, column);
        let node = |column| session.get::<Option<i32>>(row, column);
        let version = |timestamp: Option<PgTimestamp>, node: Option<i32>| {
            let (timestamp, node) = timestamp.zip(node)?;
            Some(Version {
                timestamp,
                node: Self::node(node),
            })
        };
        let image: Option<String> = session.get(row, 1)?;
        let origin: Option<String> = session.get(row, 4)?;
        let own = session.node.id;
        let standing = if image.is_some() {
            let writer = origin.and_then(|name| OriginName::parse(&name));
            let writer = i32::from(writer.map_or(own, |origin| origin.node));
            version(time(2)?, Some(node(3)?.unwrap_or(writer)))
        } else {
            // A client's delete that is not known yet is newer than all that the link has brought.
            let now = version(time(12)?, Some(i32::from(own)));
            version(time(5)?, node(6)?).or(now)
        };
        // What collides with others is decided by the newest version.
        let is_shadowed: bool = session.get(row, 13)?;
        let standing = standing.filter(|version| version.node == own && !is_shadowed);
        let (writer, upheld) = (time(7)?, version(time(8)?, node(9)?));
        let behind = upheld.zip(version(time(10)?, node(11)?));
        let standing = standing.map(|version| match behind {
            Some((upheld, own)) if writer == Some(version.timestamp) => Standing { upheld, own },
            _ => Standing::of(version),
        });
        Ok(Found {
            key: session.get(row, 0)?,
            image,
            standing,
        })
    }

    /// Remembers for which write the row stands now, and says in the line who has lost.
    async fn note(
        &self,
        target: &Target,
        found: &Found,
        loser: Version,
        standing: Standing,
    ) -> Result<(), OperatorError> {
        let (upheld, own) = (standing.upheld, standing.own);
        let note = format!(
            "INSERT INTO tandem.upheld (relation, key, writer, written, node, own, own_node) \
             SELECT $1, $2::text::jsonb, pg_current_xact_id()::xid, {}, {}, {}, {} ON CONFLICT (relation, key) DO UPDATE \
             SET writer = excluded.writer, written = excluded.written, node = excluded.node, own = excluded.own, \
             own_node = excluded.own_node",
            loser.timestamp_sql(),
            loser.node,
            own.timestamp_sql(),
            own.node
        );
        let name = target.qualified();
        self.session.query(&note, &[&name, &found.key]).await?;
        let line = format!(
            "UPDATE tandem.conflict SET outcome = 'remote', local_image = $2::text::json, local_timestamp = {}, local_node = {} \
             WHERE id = $1",
            upheld.timestamp_sql(),
            upheld.node
        );
        self.session
            .query(&line, &[&self.line, &found.image])
            .await?;
        Ok(())
    }

    fn node(id: i32) -> u16 {
        u16::try_from(id).unwrap_or_default()
    }
}
