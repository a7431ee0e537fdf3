//! Forgets deletes that no change can meet any more.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::node::Shared;
use crate::watermark;

/// Pause between two collections.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long the nodes may take to catch up with each other in one round. Otherwise nothing is collected.
const ROUND_TIMEOUT: Duration = Duration::from_secs(120);

/// Collects for ever.
pub(crate) async fn keep(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        if let Err(problem) = collect(&shared).await {
            tracing::debug!(problem, "remembered deletes are kept for now");
        }
    }
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
        let sql = "SELECT max(id) FROM tandem.tombstone WHERE counters IS NULL";
        let rows = control
            .query(sql, &[])
            .await
            .map_err(|error| error.to_string())?;
        marks.push(rows.first().and_then(|row| row.get::<_, Option<i64>>(0)));
    }
    if marks.iter().all(Option::is_none) {
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
    for (control, mark) in controls.iter().zip(marks) {
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
