//! Owns when a write was last acknowledged on each node through this proxy, and how often somebody had to wait to see such.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::{Duration, Instant};

/// What all sessions together know of the nodes' writes.
#[derive(Debug)]
pub(crate) struct Acknowledged {
    /// Whatever was acknowledged by an earlier daemon was so before this.
    begun: Instant,
    nodes: Box<[Node]>,
}

#[derive(Debug, Default)]
struct Node {
    /// Nanoseconds from `begun` to when a client was last about to be told that a write is done.
    written: AtomicU64,
    waits: AtomicU64,
    timeouts: AtomicU64,
}

/// How often units of work waited on a node to be shown what was seen elsewhere, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Waits {
    pub(crate) all: u64,
    /// Those that were in vain.
    pub(crate) timeouts: u64,
}

impl Acknowledged {
    /// Of a daemon that begins now.
    pub(crate) fn new(nodes: usize) -> Acknowledged {
        Acknowledged {
            begun: Instant::now(),
            nodes: (0..nodes).map(|_| Node::default()).collect(),
        }
    }

    /// A client is about to be told that something is done which may have written on this node.
    pub(crate) fn note(&self, node: usize) {
        if let Some(node) = self.nodes.get(node) {
            // 584 years.
            let now = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
            node.written.fetch_max(now, Ordering::AcqRel);
        }
    }

    /// When that was for each node, at the latest.
    pub(crate) fn last(&self) -> impl Iterator<Item = (usize, Instant)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.map(|(index, node)| {
            let written = Duration::from_nanos(node.written.load(Ordering::Acquire));
            (index, self.begun + written)
        })
    }

    /// Somebody has waited on this node.
    pub(crate) fn waited(&self, node: usize, shows: bool) {
        if let Some(node) = self.nodes.get(node) {
            node.waits.fetch_add(1, Ordering::Relaxed);
            node.timeouts
                .fetch_add(u64::from(!shows), Ordering::Relaxed);
        }
    }

    /// How often that was on each node.
    pub(crate) fn waits(&self) -> Vec<Waits> {
        let waits = |node: &Node| Waits {
            all: node.waits.load(Ordering::Relaxed),
            timeouts: node.timeouts.load(Ordering::Relaxed),
        };
        self.nodes.iter().map(waits).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_as_late_as_its_note_and_never_goes_back() {
        let all = Acknowledged::new(2);
        let last = |node: usize| all.last().nth(node).expect("a node").1;
        assert_eq!((last(0), last(1)), (all.begun, all.begun));
        let before = Instant::now();
        all.note(1);
        all.note(7);
        assert!(last(1) >= before && last(1) <= Instant::now());
        assert_eq!(last(0), all.begun);
        let noted = last(1);
        all.nodes[1].written.fetch_max(1, Ordering::AcqRel);
        assert_eq!(last(1), noted);
    }
}
