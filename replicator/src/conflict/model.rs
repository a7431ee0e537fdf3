//! A model of a cluster: nodes, streams in commit order, causal delivery, deletes that are remembered, own deletes that
//! are learnt late, a counter in each row, and runs of changes that are brought together. Whatever the order of delivery,
//! all nodes must end equal, and equal to the oracle; the counter is the sum of all contributions.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::counter::{Place, place};
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
    /// What the change adds to the counter: of an insert the value, of a delete less the value that it saw.
    contribution: i64,
    seen: [usize; NODES],
}

/// The version of the run that wrote a row, and whether what the row really is, is still known.
#[derive(Debug, Clone, Copy)]
struct Look {
    stamp: Version,
    open: bool,
}

/// A version, and the counter of the row that has it, or what the delete with it holds.
type Valued = (Version, i64);

#[derive(Debug, Default)]
struct Node {
    /// With the versions of the changes whose values they have.
    rows: BTreeMap<u8, Valued>,
    /// How rows look that were written by a run.
    looks: BTreeMap<u8, Look>,
    tombstones: BTreeMap<u8, Valued>,
    stream: Vec<Written>,
    /// Own inserts and deletes that are in the stream but not learnt yet.
    unlearnt: VecDeque<(u8, Operation, Version)>,
    /// How much of every node's stream is applied.
    applied: [usize; NODES],
}

impl Node {
    fn bury(&mut self, key: u8, version: Version, rest: i64) {
        let (newest, sum) = self.tombstones.entry(key).or_insert((version, 0));
        *newest = version.max(*newest);
        *sum += rest;
    }

    /// The version that a change of version `than` takes a row for.
    fn version(&self, key: u8, than: Version) -> Option<Version> {
        let (written, _) = self.rows.get(&key)?;
        Some(match self.looks.get(&key) {
            Some(look) if !look.open || look.stamp < than => look.stamp,
            _ => *written,
        })
    }

    fn learn(&mut self) {
        match self.unlearnt.pop_front() {
            Some((key, Operation::Delete, version)) => {
                self.bury(key, version, 0);
                let look = self.looks.get(&key).map(|look| look.stamp);
                if let Some((_, value)) = self
                    .rows
                    .get(&key)
                    .copied()
                    .filter(|row| look.unwrap_or(row.0) < version)
                {
                    self.rows.remove(&key);
                    self.looks.remove(&key);
                    self.bury(key, version, value);
                }
            }
            Some((key, ..)) => {
                if let (Some(row), Some(tombstone)) =
                    (self.rows.get_mut(&key), self.tombstones.get_mut(&key))
                {
                    row.1 += std::mem::take(&mut tombstone.1);
                }
            }
            None => {}
        }
    }

    fn apply(&mut self, change: &Written) {
        let waits = matches!(change.operation, Operation::Update | Operation::Delete);
        if waits && !self.rows.contains_key(&change.key) {
            while !self.unlearnt.is_empty() {
                self.learn();
            }
        }
        let found = match self.version(change.key, change.version) {
            Some(version) => Found::Row(Some(version)),
            None => Found::Missing(self.tombstones.get(&change.key).map(|deleted| deleted.0)),
        };
        let action = decide(change.operation, change.version, found).action;
        let (key, version, added) = (change.key, change.version, change.contribution);
        let row = self.rows.get(&key).map_or(0, |row| row.1);
        match place(action, found) {
            Place::NewRow => {
                let deleted = self.tombstones.get_mut(&key);
                let rest = deleted.map_or(0, |(_, rest)| std::mem::take(rest));
                self.rows.insert(key, (version, rest + added));
            }
            Place::Row => {
                self.looks.remove(&key);
                self.rows.insert(key, (version, row + added));
            }
            Place::KeptRow => {
                if let Some((_, value)) = self.rows.get_mut(&key) {
                    *value += added;
                }
            }
            Place::RowIntoDelete => {
                self.rows.remove(&key);
                self.looks.remove(&key);
                self.bury(key, version, row + added);
            }
            Place::Delete => self.bury(key, version, added),
        }
        if action == Action::Bury && matches!(found, Found::Row(_)) {
            self.bury(key, version, 0);
        }
    }
}

/// What a run comes to for one key.
#[derive(Debug, Clone)]
struct Net {
    first: Written,
    last: Written,
    sum: i64,
}

impl Node {
    /// Whether a run's changes of one key go through without a closer look: the first decides.
    fn is_clean(&self, net: &Net) -> bool {
        let key = net.first.key;
        let look = self.looks.get(&key).map(|look| look.stamp);
        let row = self.rows.get(&key).map(|row| look.unwrap_or(row.0));
        match net.first.operation {
            Operation::Insert => row.is_none() && !self.tombstones.contains_key(&key),
            _ => row.is_some_and(|row| row <= net.first.version),
        }
    }

    /// Brings changes of one source together and applies them under the newest version; answers false, and does nothing,
    /// where they have to be applied one by one.
    fn apply_run(&mut self, changes: &[Written]) -> bool {
        let mut nets: BTreeMap<u8, Net> = BTreeMap::new();
        for change in changes {
            let Some(net) = nets.get_mut(&change.key) else {
                let net = Net {
                    first: change.clone(),
                    last: change.clone(),
                    sum: change.contribution,
                };
                nets.insert(change.key, net);
                continue;
            };
            if net.last.operation == Operation::Delete {
                return false;
            }
            net.last = change.clone();
            net.sum += change.contribution;
        }
        // Everything that is older than the run's newest is known of the node's own.
        while !self.unlearnt.is_empty() {
            self.learn();
        }
        let stamp = changes.iter().map(|change| change.version).max();
        let (Some(stamp), true) = (stamp, nets.values().all(|net| self.is_clean(net))) else {
            return false;
        };
        for (key, net) in nets {
            let value = self.rows.remove(&key).map_or(0, |row| row.1) + net.sum;
            self.looks.remove(&key);
            if net.last.operation == Operation::Delete {
                self.bury(key, net.last.version, value);
            } else {
                self.rows.insert(key, (net.last.version, value));
                self.looks.insert(key, Look { stamp, open: true });
            }
        }
        true
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// A client of a node writes a key, if the row is there to be written.
    Write {
        node: usize,
        key: u8,
        operation: Operation,
        amount: i64,
    },
    /// The next change of one node's stream reaches another, if its causes have.
    Deliver { from: usize, to: usize },
    /// The next changes of one node's stream reach another together.
    DeliverRun { from: usize, to: usize, most: usize },
    /// A node forgets what the rows of runs really are, where no older change can arrive any more.
    Close { node: usize },
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
                amount,
            } => self.write(node, key, operation, amount),
            Step::Deliver { from, to } if from != to => {
                self.deliver(from, to);
            }
            Step::DeliverRun { from, to, most } if from != to => self.deliver_run(from, to, most),
            Step::Deliver { .. } | Step::DeliverRun { .. } => {}
            Step::Close { node } => self.close(node),
            Step::Learn { node } => self.nodes[node].learn(),
        }
    }

    fn write(&mut self, index: usize, key: u8, operation: Operation, amount: i64) {
        self.clock += 1;
        let version = Version {
            timestamp: self.clock,
            node: u16::try_from(index + 1).expect("few nodes"),
        };
        let node = &mut self.nodes[index];
        let row = node.rows.get(&key).map(|row| row.1);
        let contribution = match (operation, row) {
            (Operation::Insert, None) => {
                node.rows.insert(key, (version, amount));
                amount
            }
            (Operation::Update, Some(value)) => {
                node.looks.remove(&key);
                node.rows.insert(key, (version, value + amount));
                amount
            }
            (Operation::Delete, Some(value)) => {
                node.looks.remove(&key);
                node.rows.remove(&key);
                -value
            }
            _ => return,
        };
        if operation != Operation::Update {
            node.unlearnt.push_back((key, operation, version));
        }
        let mut seen = node.applied;
        seen[index] = node.stream.len();
        node.stream.push(Written {
            key,
            operation,
            version,
            contribution,
            seen,
        });
    }

    fn deliver(&mut self, from: usize, to: usize) -> bool {
        let next = self.nodes[to].applied[from];
        let Some(change) = self.nodes[from].stream.get(next).cloned() else {
            return false;
        };
        let causes_are_there = self.has_causes(from, to, &change);
        if causes_are_there {
            self.nodes[to].apply(&change);
            self.nodes[to].applied[from] += 1;
        }
        causes_are_there
    }

    fn has_causes(&self, from: usize, to: usize, change: &Written) -> bool {
        (0..NODES).all(|node| {
            node == to || node == from || self.nodes[to].applied[node] >= change.seen[node]
        })
    }

    fn deliver_run(&mut self, from: usize, to: usize, most: usize) {
        let rest = self.nodes[from]
            .stream
            .iter()
            .skip(self.nodes[to].applied[from]);
        let run: Vec<_> = rest
            .take(most)
            .take_while(|change| self.has_causes(from, to, change))
            .cloned()
            .collect();
        if !run.is_empty() && self.nodes[to].apply_run(&run) {
            self.nodes[to].applied[from] += run.len();
        }
    }

    fn close(&mut self, index: usize) {
        let applied = self.nodes[index].applied;
        let coming = (0..NODES).filter(|&from| from != index).flat_map(|from| {
            let stream = &self.nodes[from].stream;
            stream
                .iter()
                .skip(applied[from])
                .map(|change| change.version)
        });
        let oldest = coming.min();
        for look in self.nodes[index].looks.values_mut() {
            look.open &= oldest.is_some_and(|oldest| oldest < look.stamp);
        }
    }

    /// Delivers everything; answers the final rows of each node.
    fn settle(mut self) -> Vec<BTreeMap<u8, Valued>> {
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

    /// The newest version of each key over all writes, nothing where that is a delete, and the sum of its contributions.
    fn oracle(&self) -> BTreeMap<u8, Valued> {
        let mut newest: BTreeMap<u8, (&Written, i64)> = BTreeMap::new();
        for change in self.nodes.iter().flat_map(|node| &node.stream) {
            let (known, sum) = newest.entry(change.key).or_insert((change, 0));
            *sum += change.contribution;
            if change.version > known.version {
                *known = change;
            }
        }
        let rows = newest
            .into_iter()
            .filter(|(_, (change, _))| change.operation != Operation::Delete);
        rows.map(|(key, (change, sum))| (key, (change.version, sum)))
            .collect()
    }
}

fn step() -> impl Strategy<Value = Step> {
    let operation = prop_oneof![
        Just(Operation::Insert),
        Just(Operation::Update),
        Just(Operation::Delete)
    ];
    prop_oneof![
        3 => (0..NODES, 0u8..2, operation, -9i64..10).prop_map(|(node, key, operation, amount)| Step::Write { node, key, operation, amount }),
        3 => (0..NODES, 0..NODES).prop_map(|(from, to)| Step::Deliver { from, to }),
        2 => (0..NODES, 0..NODES, 1usize..6).prop_map(|(from, to, most)| Step::DeliverRun { from, to, most }),
        1 => (0..NODES).prop_map(|node| Step::Close { node }),
        1 => (0..NODES).prop_map(|node| Step::Learn { node }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_converge_to_the_newest_version_and_counters_to_their_sum_in_every_order(
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
