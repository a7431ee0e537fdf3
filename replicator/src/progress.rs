//! How far each target is with each source, as the rest of the process sees it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tandem_wire::lsn::Lsn;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::meter::lock;

use crate::version::PgTimestamp;

/// What a link is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// Its target or its source has not been reached yet.
    Waiting,
    /// Changes flow.
    Streaming,
    /// It waits for another source's transactions that the next change may have seen.
    WaitingForCause {
        /// Whose.
        node: u16,
        /// Up to where in that node's WAL; `None` while that is being found out.
        lsn: Option<Lsn>,
    },
    /// The target's clock has yet to pass the timestamp of the next change.
    WaitingForClock,
    /// It cannot go on; it tries again by itself.
    Blocked {
        /// Why, and how to mend it.
        problem: String,
    },
}

/// One (source, target).
///
/// Invariant: `applied` is at most what the target has committed, and everything of the source up to it is.
pub(crate) struct Link {
    /// Index of the source in the configuration.
    pub source: usize,
    /// Index of the target in the configuration.
    pub target: usize,
    applied: watch::Sender<Lsn>,
    durable: AtomicU64,
    transactions: AtomicU64,
    /// By type. Taken only when there was one.
    conflicts: Mutex<BTreeMap<&'static str, u64>>,
    last_timestamp: AtomicU64,
    /// With the time since when.
    state: Mutex<(LinkState, Instant)>,
}

impl Link {
    /// A link of which nothing is known.
    pub(crate) fn new(source: usize, target: usize) -> Self {
        Self {
            source,
            target,
            applied: watch::Sender::new(Lsn(0)),
            durable: AtomicU64::new(0),
            transactions: AtomicU64::new(0),
            conflicts: Mutex::default(),
            last_timestamp: AtomicU64::new(0),
            state: Mutex::new((LinkState::Waiting, Instant::now())),
        }
    }

    /// Up to where the source is applied.
    pub(crate) fn applied(&self) -> Lsn {
        *self.applied.borrow()
    }

    /// Moves it forward.
    pub(crate) fn advance(&self, lsn: Lsn) {
        self.applied.send_if_modified(|applied| {
            let forward = lsn > *applied;
            if forward {
                *applied = lsn;
            }
            forward
        });
    }

    /// Sets it to what the target says after a (re)connect; it may have lost what was not flushed.
    pub(crate) fn reset(&self, lsn: Lsn) {
        self.applied.send_replace(lsn);
        self.durable.fetch_min(lsn.0, Ordering::AcqRel);
    }

    /// Waits until the source is applied up to `lsn`.
    pub(crate) async fn wait_applied(&self, lsn: Lsn) {
        // The sender lives in self, so the channel cannot close under us.
        let _ = self
            .applied
            .subscribe()
            .wait_for(|applied| *applied >= lsn)
            .await;
    }

    /// Up to where the source is applied and flushed.
    pub(crate) fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::Acquire))
    }

    /// After a flush of the target that covers everything that was applied up to `lsn`.
    pub(crate) fn set_durable(&self, lsn: Lsn) {
        self.durable.fetch_max(lsn.0, Ordering::AcqRel);
    }

    /// Counts applied transactions; `timestamp` is the last one's.
    pub(crate) fn count(&self, transactions: u64, timestamp: PgTimestamp) {
        self.transactions.fetch_add(transactions, Ordering::Relaxed);
        self.last_timestamp.store(
            u64::from_ne_bytes(timestamp.to_ne_bytes()),
            Ordering::Relaxed,
        );
    }

    /// Counts conflicts, each by the name of its type.
    pub(crate) fn count_conflicts(&self, types: impl IntoIterator<Item = &'static str>) {
        let mut types = types.into_iter().peekable();
        if types.peek().is_none() {
            return;
        }
        let mut conflicts = lock(&self.conflicts);
        for name in types {
            *conflicts.entry(name).or_default() += 1;
        }
    }

    /// Transactions applied since the daemon started.
    pub(crate) fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }

    /// Conflicts since the daemon started, by type.
    pub(crate) fn conflicts(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.conflicts).clone()
    }

    /// Commit timestamp of the last transaction applied; `None` before the first.
    pub(crate) fn last_timestamp(&self) -> Option<PgTimestamp> {
        let raw = self.last_timestamp.load(Ordering::Relaxed);
        (raw != 0).then(|| PgTimestamp::from_ne_bytes(raw.to_ne_bytes()))
    }

    /// What it is doing, and since when.
    pub(crate) fn state(&self) -> (LinkState, Instant) {
        lock(&self.state).clone()
    }

    /// Says what it is doing; answers whether that is news.
    pub(crate) fn set_state(&self, state: LinkState) -> bool {
        let mut current = lock(&self.state);
        let news = current.0 != state;
        if news {
            *current = (state, Instant::now());
        }
        news
    }
}

/// All links of the cluster.
pub(crate) struct Links {
    nodes: usize,
    links: Vec<Link>,
}

impl Links {
    /// One for each ordered pair of nodes. That of a node to itself learns its own deletes; a single node has none to
    /// learn for.
    pub(crate) fn new(nodes: usize) -> Self {
        let pairs = (0..nodes).flat_map(|source| (0..nodes).map(move |target| (source, target)));
        Self {
            nodes,
            links: pairs
                .map(|(source, target)| Link::new(source, target))
                .collect(),
        }
    }

    /// The link between two nodes, or of a node to itself.
    pub(crate) fn get(&self, source: usize, target: usize) -> Option<&Link> {
        if source >= self.nodes || target >= self.nodes {
            return None;
        }
        self.links.get(source * self.nodes + target)
    }

    /// Every link that there is.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(|_| self.nodes > 1)
    }

    /// Links that bring a source's transactions to its targets.
    pub(crate) fn of_source(&self, source: usize) -> impl Iterator<Item = &Link> {
        self.iter().filter(move |link| link.source == source)
    }

    /// Links that bring other nodes' transactions to a target.
    pub(crate) fn of_target(&self, target: usize) -> impl Iterator<Item = &Link> {
        self.iter().filter(move |link| link.target == target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_join_every_pair_of_nodes() {
        let links = Links::new(3);
        assert_eq!(links.iter().count(), 9);
        assert_eq!(links.of_target(1).count(), 3);
        assert_eq!(Links::new(1).iter().count(), 0);
        assert!(links.get(0, 3).is_none());
        assert_eq!(
            links.get(2, 1).map(|link| (link.source, link.target)),
            Some((2, 1))
        );
    }

    #[test]
    fn a_target_that_lost_its_tail_takes_durability_back_with_it() {
        let link = Link::new(0, 1);
        link.advance(Lsn(50));
        link.set_durable(Lsn(50));
        link.reset(Lsn(30));
        assert_eq!((link.applied(), link.durable()), (Lsn(30), Lsn(30)));
        link.advance(Lsn(20));
        assert_eq!(link.applied(), Lsn(30));
    }
}
