//! Owns what a fenced node means for clients: as long as another node is there, sessions end and go elsewhere.

use std::{sync::Arc, time::Duration};

use tandem_replicator::Replicator;
use tokio::time::{Instant, MissedTickBehavior};

use crate::session::{Shared, registry::Stop};

/// How often the replicator is asked. It looks at the clocks itself twice a second.
const INTERVAL: Duration = Duration::from_millis(200);
/// How long a transaction may go on after its node was fenced. What it writes is mended like all that was written before.
const GRACE: Duration = Duration::from_secs(2);

/// Keeps clients off fenced nodes, for ever. Direct connections are out of reach.
pub(crate) async fn keep(shared: Arc<Shared>, replicator: Arc<Replicator>) {
    let mut fenced_since: Vec<Option<Instant>> = vec![None; shared.nodes.len()];
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = ticks.tick().await;
        for node in 0..shared.nodes.len() {
            shared.health.set_fence(node, replicator.fenced(node));
        }
        for (node, since) in fenced_since.iter_mut().enumerate() {
            if shared.health.fence(node).is_none() || shared.health.usable(node) {
                *since = None;
                continue;
            }
            let grace = now.duration_since(*since.get_or_insert(now)) < GRACE;
            // Again and again: a session may have been on its way there.
            let sessions = shared
                .registry
                .stop_node(node, if grace { Stop::WhenIdle } else { Stop::AtOnce });
            if sessions > 0 {
                let name = shared.nodes.get(node).map_or("?", |node| node.name());
                tracing::info!(node = name, sessions, "sessions of a fenced node are ended");
            }
        }
    }
}
