//! Resolvers that are layered on the newest version.
//!
//! Only the newest version decides rows: rules that compare two writes, such as "the first wins", are not transitive, so
//! nodes that apply them in different orders would differ. A layered resolver acts afterwards: the node whose own write
//! stands although the policy prefers an older, concurrent one that arrives writes the other one's row again, as a new change
//! of its own. That change has seen both, so it settles their conflict.
//!
//! Of any two concurrent writes the older one arrives at the newer one's node after it, so every true conflict is seen
//! there, whatever the order of arrival; and what arrives older than the node's own write is a true conflict: whoever sees
//! that write first writes something newer.

use crate::version::Version;

/// Who wins a conflict on a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Resolver {
    /// The newest version.
    #[default]
    LastUpdateWins,
    /// The oldest of the versions that had not seen each other.
    FirstUpdateWins,
    /// The version of the node that stands first in the list of node ids; of nodes that are not listed, or the same node,
    /// the newest.
    NodePriority(Vec<u16>),
}

/// A node's own write, as a layered resolver compares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The write whose row it has: its own version, or that of the write that was written again.
    pub upheld: Version,
    /// The version of the last write of the node's clients.
    pub own: Version,
}

impl Standing {
    /// A write of the node's own clients.
    pub(crate) fn of(own: Version) -> Self {
        Self { upheld: own, own }
    }
}

impl Resolver {
    /// The name as configuration and conflict log have it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::LastUpdateWins => "last_update_wins",
            Self::FirstUpdateWins => "first_update_wins",
            Self::NodePriority(_) => "node_priority",
        }
    }

    /// Whether it may prefer an older version.
    pub(crate) fn is_layered(&self) -> bool {
        *self != Self::LastUpdateWins
    }

    /// Whether a write that has lost against `standing`, because that is newer, should have won.
    ///
    /// That ends: under `first_update_wins` only writes older than some write of a client's are preferred, and what is
    /// written again is newer; under `node_priority` a node gives way to nodes of higher priority only, so the highest never
    /// does, the second only to what the highest's clients wrote, and so on.
    pub(crate) fn prefers(&self, loser: Version, standing: Standing) -> bool {
        let upheld = standing.upheld;
        // What the upheld write's own node wrote after it has seen it.
        let follows = loser.node == upheld.node && loser > upheld;
        match self {
            Self::LastUpdateWins => false,
            Self::FirstUpdateWins => loser < upheld || (follows && loser < standing.own),
            Self::NodePriority(order) => {
                let rank = |node| {
                    order
                        .iter()
                        .position(|&id| id == node)
                        .unwrap_or(order.len())
                };
                rank(loser.node) < rank(upheld.node) || follows
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const NODES: usize = 3;
    /// No history of the test may make the nodes write again more often than this.
    const REWRITES_MAX: usize = 2_000;

    /// One write in a node's stream. The content is the client's write that it goes back to.
    #[derive(Debug, Clone, Copy)]
    struct Written {
        version: Version,
        content: Version,
        seen: [usize; NODES],
    }

    /// A node with one row, which a delete would leave as one more content.
    #[derive(Debug, Default)]
    struct Node {
        row: Option<(Version, Version)>,
        upheld: Option<(Version, Standing)>,
        pending: BTreeSet<(Version, Version)>,
        stream: Vec<Written>,
        applied: [usize; NODES],
        clock: i64,
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// A client writes; the node's clock has moved by so much.
        Write {
            node: usize,
            after: i64,
        },
        Deliver {
            from: usize,
            to: usize,
        },
        /// A node works off one line that is pending.
        Settle {
            node: usize,
            after: i64,
        },
    }

    struct Cluster {
        nodes: [Node; NODES],
        resolver: Resolver,
        rewrites: usize,
        written: BTreeSet<Version>,
    }

    fn id(index: usize) -> u16 {
        u16::try_from(index + 1).expect("few nodes")
    }

    impl Cluster {
        fn new(resolver: Resolver) -> Self {
            Self {
                nodes: Default::default(),
                resolver,
                rewrites: 0,
                written: BTreeSet::new(),
            }
        }

        fn write(&mut self, index: usize, after: i64, content: Option<Version>) -> Version {
            let node = &mut self.nodes[index];
            node.clock += after.max(1);
            let version = Version {
                timestamp: node.clock,
                node: id(index),
            };
            let content = content.unwrap_or(version);
            let mut seen = node.applied;
            seen[index] = node.stream.len();
            node.row = Some((version, content));
            node.stream.push(Written {
                version,
                content,
                seen,
            });
            version
        }

        fn client_writes(&mut self, index: usize, after: i64) -> Version {
            let version = self.write(index, after, None);
            self.written.insert(version);
            version
        }

        fn deliver(&mut self, from: usize, to: usize) -> bool {
            let next = self.nodes[to].applied[from];
            let Some(&change) = self.nodes[from].stream.get(next) else {
                return false;
            };
            let waits = (0..NODES)
                .any(|n| n != to && n != from && self.nodes[to].applied[n] < change.seen[n]);
            if from == to || waits {
                return false;
            }
            let node = &mut self.nodes[to];
            node.applied[from] += 1;
            // A clock is past whatever was applied.
            node.clock = node.clock.max(change.version.timestamp);
            match node.row {
                Some((row, _)) if row > change.version => {
                    if row.node == id(to) {
                        node.pending.insert((change.version, change.content));
                    }
                }
                _ => node.row = Some((change.version, change.content)),
            }
            true
        }

        fn settle(&mut self, index: usize, after: i64) -> bool {
            let node = &mut self.nodes[index];
            let Some((loser, content)) = node.pending.pop_first() else {
                return false;
            };
            let Some((row, _)) = node.row.filter(|(row, _)| row.node == id(index)) else {
                return true;
            };
            let upheld = node.upheld.filter(|(writer, _)| *writer == row);
            let standing = upheld.map_or_else(|| Standing::of(row), |(_, standing)| standing);
            if self.resolver.prefers(loser, standing) {
                let version = self.write(index, after, Some(content));
                self.nodes[index].upheld = Some((
                    version,
                    Standing {
                        upheld: loser,
                        ..standing
                    },
                ));
                self.rewrites += 1;
                assert!(self.rewrites < REWRITES_MAX, "it does not end");
            }
            true
        }

        fn take(&mut self, step: &Step) {
            match *step {
                Step::Write { node, after } => drop(self.client_writes(node, after)),
                Step::Deliver { from, to } => drop(self.deliver(from, to)),
                Step::Settle { node, after } => drop(self.settle(node, after)),
            }
        }

        /// Delivers and settles everything, in an order of the seed's; answers what each node has.
        fn finish(&mut self, seed: u64) -> Vec<Option<(Version, Version)>> {
            let mut random = fastrand::Rng::with_seed(seed);
            loop {
                let mut steps: Vec<(usize, usize)> = (0..NODES)
                    .flat_map(|a| (0..NODES).map(move |b| (a, b)))
                    .collect();
                random.shuffle(&mut steps);
                let after = random.i64(0..3);
                let moved = steps.iter().any(|&(a, b)| {
                    if a == b {
                        self.settle(a, after)
                    } else {
                        self.deliver(a, b)
                    }
                });
                if !moved {
                    return self.nodes.iter().map(|node| node.row).collect();
                }
            }
        }
    }

    fn resolver() -> impl Strategy<Value = Resolver> {
        prop_oneof![
            Just(Resolver::FirstUpdateWins),
            Just(vec![1, 2, 3])
                .prop_shuffle()
                .prop_map(Resolver::NodePriority),
            Just(Resolver::NodePriority(vec![2])),
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        let after = || 0i64..30;
        prop_oneof![
            1 => (0..NODES, after()).prop_map(|(node, after)| Step::Write { node, after }),
            3 => (0..NODES, 0..NODES).prop_map(|(from, to)| Step::Deliver { from, to }),
            2 => (0..NODES, after()).prop_map(|(node, after)| Step::Settle { node, after }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever clients write meanwhile, and however far clocks are apart, it ends, and all nodes have the same row,
        /// which some client wrote.
        #[test]
        fn layered_resolvers_end_and_converge(
            resolver in resolver(),
            steps in proptest::collection::vec(step(), 1..60),
            seed in any::<u64>(),
        ) {
            let mut cluster = Cluster::new(resolver);
            for step in &steps {
                cluster.take(step);
            }
            let rows = cluster.finish(seed);
            prop_assert!(rows.iter().all(|row| *row == rows[0]), "{rows:?}");
            if let Some((_, content)) = rows[0] {
                prop_assert!(cluster.written.contains(&content));
            }
        }

        /// Each node writes once, none has seen another's: the one that the policy names wins, in every order of delivery.
        #[test]
        fn of_three_that_conflict_the_one_that_the_policy_names_wins(
            resolver in resolver(),
            times in Just([1i64, 2, 3]).prop_shuffle(),
            seed in any::<u64>(),
        ) {
            let mut cluster = Cluster::new(resolver.clone());
            let written: Vec<_> = (0..NODES).map(|node| cluster.client_writes(node, times[node])).collect();
            let rows = cluster.finish(seed);
            let order = match resolver {
                Resolver::NodePriority(order) => order,
                _ => Vec::new(),
            };
            let first = order.first().map(|&node| written[usize::from(node) - 1]);
            let winner = first.or_else(|| written.iter().min().copied());
            prop_assert!(rows.iter().all(|row| row.map(|row| row.1) == winner), "{rows:?}");
        }
    }

    #[test]
    fn what_the_first_writers_node_wrote_next_comes_with_it_unless_the_other_was_there_before() {
        let at = |timestamp, node| Version { timestamp, node };
        let standing = Standing {
            upheld: at(1, 1),
            own: at(3, 3),
        };
        assert!(Resolver::FirstUpdateWins.prefers(at(2, 1), standing));
        assert!(!Resolver::FirstUpdateWins.prefers(at(4, 1), standing));
        assert!(!Resolver::FirstUpdateWins.prefers(at(2, 2), standing));
    }
}
