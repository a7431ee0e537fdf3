//! Forgets deletes that no change can meet any more, and kept versions of rows that have been written since.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::control::{Control, ControlError};
use crate::debt;
use crate::node::Shared;
use crate::runs::Runs;
use crate::watermark;

/// Pause between two collections.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long the nodes may take to catch up with each other in one round. Otherwise nothing is collected.
const ROUND_TIMEOUT: Duration = Duration::from_secs(120);

/// Kept versions are looked through once in so many collections.
const KEPT_EVERY: u32 = 12;

/// Collects for ever.
pub(crate) async fn keep(shared: Arc<Shared>) {
    for round in 1u32.. {
        tokio::time::sleep(INTERVAL).await;
        if round % KEPT_EVERY == 0 {
            for node in 0..shared.config.nodes.len() {
                if let Err(error) = collect_kept(&shared, node).await {
                    tracing::debug!(%error, "kept versions stay for now");
                }
            }
        }
        let deadline = Instant::now() + ROUND_TIMEOUT;
        if let Err(error) = debt::pay(&shared, deadline).await {
            tracing::debug!(%error, "replication: tables without a key still owe rows");
        }
        if let Err(problem) = collect(&shared).await {
            tracing::debug!(problem, "remembered deletes are kept for now");
        }
    }
}

/// Forgets the kept versions of one node's rows that are not the ones any more for which they were kept, and for which
/// writes rows and deletes stood that do not stand any more.
async fn collect_kept(shared: &Shared, node: usize) -> Result<(), ControlError> {
    let (Some(control), Some(gate)) = (shared.controls.get(node), shared.gates.get(node)) else {
        return Ok(());
    };
    let Some(control) = control.borrow().clone() else {
        return Ok(());
    };
    for (table, or_deleted) in [
        ("kept", ""),
        (
            "upheld",
            "AND NOT EXISTS (SELECT FROM tandem.tombstone d WHERE d.relation = k.relation AND d.key = k.key)",
        ),
    ] {
        // The row by its key, so that an index serves; no row of a table that is gone can match.
        let stale = format!(
            "SELECT format('DELETE FROM tandem.{table} k WHERE k.relation = %L AND NOT EXISTS (SELECT FROM ONLY %s r WHERE %s \
             AND r.xmin = k.writer) {or_deleted}', x.relation, x.oid::regclass, \
               (SELECT string_agg(format('r.%I = (k.key->>%s)::%s', a.attname, \
               p.place - 1, format_type(a.atttypid, a.atttypmod)), ' AND ') FROM pg_index i, unnest(i.indkey::int2[]) \
               WITH ORDINALITY p(attnum, place) JOIN pg_attribute a ON a.attnum = p.attnum WHERE i.indrelid = x.oid \
               AND i.indisprimary AND a.attrelid = x.oid AND p.place <= i.indnkeyatts)) \
             FROM (SELECT k.relation, to_regclass(k.relation)::oid AS oid FROM tandem.{table} k GROUP BY 1) x WHERE x.oid IS NOT NULL"
        );
        for row in control.query(&stale, &[]).await? {
            if let Some(sql) = row.try_get::<_, Option<String>>(0)? {
                // Whoever writes such lines is alone at the gate, too.
                let _alone = gate.write().await;
                control.execute(&sql).await?;
            }
        }
    }
    Ok(())
}

/// Forgets what the rows of runs up to `last` really are: from now on they are what they look like, on this node. Each
/// source's newest stamp stays, for whoever compares versions.
async fn close_runs(control: &Control, runs: &Runs, last: i64) -> Result<(), String> {
    let sql = "WITH d AS (DELETE FROM tandem.run r WHERE r.id <= $1 AND EXISTS (SELECT FROM tandem.run n \
         WHERE n.source = r.source AND n.id <= $1 AND (n.stamp, n.id) > (r.stamp, r.id))) \
         UPDATE tandem.run r SET versions = NULL WHERE r.id <= $1 AND versions IS NOT NULL AND NOT EXISTS \
         (SELECT FROM tandem.run n WHERE n.source = r.source AND n.id <= $1 AND (n.stamp, n.id) > (r.stamp, r.id))";
    control
        .query(sql, &[&last])
        .await
        .map_err(|error| error.to_string())?;
    runs.close(last);
    Ok(())
}

/// One collection. A delete goes only after every node has applied it (the first round), and after every node has
/// applied whatever any node wrote before it had (the second): never by age.
async fn collect(shared: &Arc<Shared>) -> Result<(), String> {
    let _alone = shared.collecting.lock().await;
    let controls: Option<Vec<_>> = shared
        .controls
        .iter()
        .map(|control| control.borrow().clone())
        .collect();
    let controls = controls.ok_or("a node is away")?;
    // What is in quarantine is not applied, so it may still meet any delete.
    let quarantined = || !shared.quarantines.iter().all(|held| held.is_empty());
    if quarantined() {
        return Err("a node has transactions in quarantine".to_owned());
    }
    let mut marks = Vec::new();
    for control in &controls {
        let sql = "SELECT (SELECT max(id) FROM tandem.tombstone WHERE counters IS NULL), \
             (SELECT max(id) FROM tandem.run WHERE versions IS NOT NULL)";
        let rows = control
            .query(sql, &[])
            .await
            .map_err(|error| error.to_string())?;
        let mark = |column| {
            let row = rows.first();
            row.and_then(|row| row.get::<_, Option<i64>>(column))
        };
        marks.push((mark(0), mark(1)));
    }
    if marks.iter().all(|mark| *mark == (None, None)) {
        return Ok(());
    }
    for _ in 0..2 {
        let deadline = Instant::now() + ROUND_TIMEOUT;
        watermark::everywhere(shared, deadline)
            .await
            .map_err(|error| error.to_string())?;
    }
    if quarantined() {
        return Err("a transaction was put into quarantine".to_owned());
    }
    for ((control, runs), (mark, last_run)) in controls.iter().zip(&shared.runs).zip(marks) {
        if let Some(last) = last_run {
            close_runs(control, runs, last).await?;
        }
        // In steps, so that no query keeps the connection from its other work for long.
        let sql = "WITH d AS (DELETE FROM tandem.tombstone WHERE ctid = ANY (ARRAY(SELECT ctid FROM tandem.tombstone \
             WHERE id <= $1 AND counters IS NULL LIMIT 10000)) AND id <= $1 AND counters IS NULL RETURNING 1) SELECT count(*) FROM d";
        while control
            .query(sql, &[&mark])
            .await
            .map_err(|error| error.to_string())?
            .first()
            .is_some_and(|row| row.get::<_, i64>(0) > 0)
        {}
    }
    Ok(())
}
