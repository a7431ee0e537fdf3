//! Owns the end of what sessions have left behind at a node that is back: server processes that were there before it was lost, and may
//! still do what they were sent then.
//!
//! Only Tandem's own are ended: those whose process numbers a node gave to connections of its pools, and that are older than the loss.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::session::Shared;

/// Ends these processes, as far as they are of connections that were begun more than `$2` seconds ago. Each that is still there is a
/// row.
const END: &str = "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity \
    WHERE pid = ANY($1) AND backend_type = 'client backend' \
    AND backend_start < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $2)";
/// How often it is looked at whether they are gone.
const LOOK: Duration = Duration::from_millis(20);
/// After this the node need not wait for them any longer: what they still do is judged by its time, as any write is.
const LONG: Duration = Duration::from_secs(10);

/// Ends what was left behind at a node that has come back for this time. Returns when all of it is gone, or the node, or after
/// [`LONG`].
pub(super) async fn end(shared: &Shared, node: usize, returned: u32) {
    let (mut pids, lost) = shared.health.take_left(node);
    let Some(lost) = lost else {
        return;
    };
    pids.extend(shared.pools.backends(node));
    let name = shared.nodes.get(node).map_or("?", |node| node.name());
    let (begun, mut first) = (Instant::now(), None);
    while !pids.is_empty() && shared.health.catching_up(node) == Some(returned) {
        let age = lost.elapsed().as_secs_f64();
        let asked = shared.control.query(node, END, &[&pids, &age]).await;
        if let Ok(rows) = &asked {
            first.get_or_insert(rows.len());
            if rows.is_empty() {
                break;
            }
        }
        if begun.elapsed() > LONG {
            let problem = asked.err().map(|error| error.to_string());
            tracing::warn!(
                node = name,
                problem,
                "server processes of before the node was lost do not end"
            );
            return;
        }
        // A node that cannot be asked is asked again.
        sleep(LOOK).await;
    }
    if shared.health.catching_up(node) != Some(returned) {
        // It is gone again, and they may be there when it is back.
        pids.iter().for_each(|pid| shared.health.left(node, *pid));
        return;
    }
    if let Some(ended) = first.filter(|ended| *ended > 0) {
        tracing::info!(
            node = name,
            ended,
            seconds = begun.elapsed().as_secs_f64(),
            "server processes of before the node was lost were ended"
        );
    }
}
