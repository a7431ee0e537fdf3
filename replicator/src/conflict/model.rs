//! A model of a cluster: nodes, streams in commit order, causal delivery, deletes that are remembered, and own deletes
//! that are learnt late. Whatever the order of delivery, all nodes must end equal, and equal to the oracle.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::{Action, Found, decide};
use crate::transaction::Operation;
use crate::version::Version;

const NODES: usize = 3;

/// One change in a node's stream: of a key, with how much of every node's stream its node had seen.
#[derive(Debug, Clone)]
struct Written {
    key: u8,
    operation: Operation,
    version: Version,
    seen: [usize; NODES],
}

#[derive(Debug, Default)]
struct Node {
    rows: BTreeMap<u8, Version>,
    tombstones: BTreeMap<u8, Version>,
    stream: Vec<Written>,
    /// Own deletes that are in the stream but not learnt yet.
    unlearnt: VecDeque<(u8, Version)>,
    /// How much of every node's stream is applied.
    applied: [usize; NODES],
}

impl Node {
    fn bury(&mut self, key: u8, version: Version) {
        let newest = self.tombstones.entry(key).or_insert(version);
        *newest = version.max(*newest);
    }

    fn learn(&mut self) {
        if let Some((key, version)) = self.unlearnt.pop_front() {
            self.bury(key, version);
            if self.rows.get(&key).is_some_and(|row| *row < version) {
                self.rows.remove(&key);
            }
        }
    }

    fn apply(&mut self, change: &Written) {
        if change.operation == Operation::Update && !self.rows.contains_key(&change.key) {
            while !self.unlearnt.is_empty() {
                self.learn();
            }
        }
        let found = match self.rows.get(&change.key) {
            Some(row) => Found::Row(Some(*row)),
            None => Found::Missing(self.tombstones.get(&change.key).copied()),
        };
        match decide(change.operation, change.version, found).action {
            Action::Insert | Action::Overwrite => {
                self.rows.insert(change.key, change.version);
            }
            Action::Delete => {
                self.rows.remove(&change.key);
                self.bury(change.key, change.version);
            }
            Action::Bury => self.bury(change.key, change.version),
            Action::Skip => {}
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// A client of a node writes a key, if the row is there to be written.
    Write {
        node: usize,
        key: u8,
        operation: Operation,
    },
    /// The next change of one node's stream reaches another, if its causes have.
    Deliver { from: usize, to: usize },
    /// A node learns its next own delete.
    Learn { node: usize },
}

struct Cluster {
    nodes: [Node; NODES],
    clock: i64,
}

impl Cluster {
    fn take(&mut self, step: &Step) {
        match *step {
            Step::Write {
                node,
                key,
                operation,
            } => self.write(node, key, operation),
            Step::Deliver { from, to } if from != to => {
                self.deliver(from, to);
            }
            Step::Deliver { .. } => {}
            Step::Learn { node } => self.nodes[node].learn(),
        }
    }

    fn write(&mut self, index: usize, key: u8, operation: Operation) {
        self.clock += 1;
        let version = Version {
            timestamp: self.clock,
            node: u16::try_from(index + 1).expect("few nodes"),
        };
        let node = &mut self.nodes[index];
        let there = node.rows.contains_key(&key);
        match operation {
            Operation::Insert if !there => drop(node.rows.insert(key, version)),
            Operation::Update if there => drop(node.rows.insert(key, version)),
            Operation::Delete if there => {
                node.rows.remove(&key);
                node.unlearnt.push_back((key, version));
            }
            _ => return,
        }
        let mut seen = node.applied;
        seen[index] = node.stream.len();
        node.stream.push(Written {
            key,
            operation,
            version,
            seen,
        });
    }

    fn deliver(&mut self, from: usize, to: usize) -> bool {
        let next = self.nodes[to].applied[from];
        let Some(change) = self.nodes[from].stream.get(next).cloned() else {
            return false;
        };
        let causes_are_there = (0..NODES).all(|node| {
            node == to || node == from || self.nodes[to].applied[node] >= change.seen[node]
        });
        if causes_are_there {
            self.nodes[to].apply(&change);
            self.nodes[to].applied[from] += 1;
        }
        causes_are_there
    }

    /// Delivers everything; answers the final rows of each node.
    fn settle(mut self) -> Vec<BTreeMap<u8, Version>> {
        let mut moved = true;
        while moved {
            moved = false;
            for from in 0..NODES {
                for to in (0..NODES).filter(|&to| to != from) {
                    while self.deliver(from, to) {
                        moved = true;
                    }
                }
            }
        }
        for node in &mut self.nodes {
            while !node.unlearnt.is_empty() {
                node.learn();
            }
        }
        let delivered = |node: &Node| {
            (0..NODES).all(|from| node.applied[from] <= self.nodes[from].stream.len())
        };
        assert!(self.nodes.iter().all(delivered));
        self.nodes.into_iter().map(|node| node.rows).collect()
    }

    /// The newest version of each key over all writes; nothing where that is a delete.
    fn oracle(&self) -> BTreeMap<u8, Version> {
        let mut newest: BTreeMap<u8, &Written> = BTreeMap::new();
        for change in self.nodes.iter().flat_map(|node| &node.stream) {
            let known = newest.entry(change.key).or_insert(change);
            if change.version > known.version {
                *known = change;
            }
        }
        let rows = newest
            .into_iter()
            .filter(|(_, change)| change.operation != Operation::Delete);
        rows.map(|(key, change)| (key, change.version)).collect()
    }
}

fn step() -> impl Strategy<Value = Step> {
    let operation = prop_oneof![
        Just(Operation::Insert),
        Just(Operation::Update),
        Just(Operation::Delete)
    ];
    prop_oneof![
        3 => (0..NODES, 0u8..2, operation).prop_map(|(node, key, operation)| Step::Write { node, key, operation }),
        3 => (0..NODES, 0..NODES).prop_map(|(from, to)| Step::Deliver { from, to }),
        1 => (0..NODES).prop_map(|node| Step::Learn { node }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn inserts_updates_and_deletes_converge_to_the_newest_version_in_every_order(
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let mut cluster = Cluster { nodes: Default::default(), clock: 0 };
        for step in &steps {
            cluster.take(step);
        }
        let oracle = cluster.oracle();
        for (index, rows) in cluster.settle().into_iter().enumerate() {
            prop_assert_eq!(&rows, &oracle, "node {}", index + 1);
        }
    }
}
