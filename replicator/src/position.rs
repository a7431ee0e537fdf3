//! Positions of nodes for who goes from one node to another and must not see less there than before.
//!
//! A position is a watermark: what was committed on its node before it was asked for is at or before it. Those who ask at the
//! same time share one.

use std::sync::Arc;

use tandem_wire::lsn::Lsn;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::node::Shared;
use crate::watermark;

/// The newest watermark of one node that was taken for this.
#[derive(Debug)]
struct Taken {
    /// When it was asked for.
    begun: Instant,
    lsn: Lsn,
}

/// The newest watermark of each node.
#[derive(Debug)]
pub(crate) struct Positions(Vec<Mutex<Option<Taken>>>);

impl Positions {
    /// None yet.
    pub(crate) fn new(nodes: usize) -> Positions {
        Positions((0..nodes).map(|_| Mutex::default()).collect())
    }

    /// A position of a node that was taken after `since`. Whoever waits behind another one gets the same.
    async fn taken_since(
        &self,
        shared: &Shared,
        node: usize,
        since: Instant,
        deadline: Instant,
    ) -> Option<Lsn> {
        let mut taken = self.0.get(node)?.lock().await;
        if let Some(taken) = taken.as_ref().filter(|taken| taken.begun > since) {
            return Some(taken.lsn);
        }
        let begun = Instant::now();
        let lsn = watermark::write_on(shared, node, deadline).await.ok()?;
        *taken = Some(Taken { begun, lsn });
        Some(lsn)
    }
}

/// Waits until `to` shows all that `from` showed at `since`: what was committed there, and what it had of other nodes. Whether
/// that is so before the deadline. What waits in quarantine there for somebody to look at it may be missed by whoever goes
/// there, so nobody waits for that.
pub(crate) async fn shows(
    shared: Arc<Shared>,
    from: usize,
    to: usize,
    since: Instant,
    deadline: Instant,
) -> bool {
    let wait = async {
        if holds_back(&shared, to) {
            return false;
        }
        let own = shared.positions.taken_since(&shared, from, since, deadline);
        let Some(own) = own.await else { return false };
        for link in shared.links.of_target(to) {
            let wanted = match link.source {
                source if source == to => continue,
                source if source == from => own,
                source => match shared.links.get(source, from) {
                    // More than it showed then, which only waits a little longer.
                    Some(there) => there.applied(),
                    None => continue,
                },
            };
            link.wait_applied(wanted).await;
        }
        !holds_back(&shared, to)
    };
    tokio::time::timeout_at(deadline, wait)
        .await
        .unwrap_or(false)
}

/// Whether something that was committed elsewhere is in quarantine on this node.
fn holds_back(shared: &Shared, node: usize) -> bool {
    let quarantine = shared.quarantines.get(node);
    let mut sources = shared.node_ids.iter();
    quarantine.is_some_and(|quarantine| sources.any(|source| quarantine.of_source(*source) > 0))
}
