//! Rows that collide on a unique or exclusion constraint besides the primary key.
//!
//! Let S be the newest version of each key. The table holds R(S): the rows of S taken from the newest to the oldest, each
//! kept unless it collides with one kept before. The others are shadowed. R(S) is the only set of rows that do not
//! collide such that every other row collides with a newer one of the set; so whoever moves single rows until that holds
//! has found it, in whatever order.

use crate::version::Version;

/// What becomes of a shadowed row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It goes into the table; what it collides with, all of it older, leaves.
    Enters,
    /// Something newer stands in its way.
    Stays,
}

/// Decides on a shadowed row of version `row`, which collides with rows of the table of the versions `others`.
pub(crate) fn judge(row: Version, mut others: impl Iterator<Item = Version>) -> Verdict {
    if others.all(|other| other < row) {
        Verdict::Enters
    } else {
        Verdict::Stays
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    /// A row: its version and the values that must be unique, one for each of two constraints.
    type Row = (Version, [u8; 2]);

    fn collide(one: &Row, other: &Row) -> bool {
        (0..2).any(|constraint| one.1[constraint] == other.1[constraint])
    }

    /// R(S) by its definition.
    fn kept(newest: &BTreeMap<u8, Row>) -> HashSet<u8> {
        let mut rows: Vec<_> = newest.iter().collect();
        rows.sort_by_key(|(_, row)| std::cmp::Reverse(row.0));
        let mut kept: Vec<(&u8, &Row)> = Vec::new();
        for (key, row) in rows {
            if kept.iter().all(|(_, other)| !collide(row, other)) {
                kept.push((key, row));
            }
        }
        kept.into_iter().map(|(key, _)| *key).collect()
    }

    /// A node: moves single rows, as the replicator does.
    #[derive(Default)]
    struct Node {
        table: BTreeMap<u8, Row>,
        shadow: BTreeMap<u8, Row>,
        deleted: BTreeMap<u8, Version>,
    }

    impl Node {
        fn evict(&mut self, row: &Row) {
            let in_the_way: Vec<u8> = self
                .table
                .iter()
                .filter(|(_, other)| collide(row, other))
                .map(|(key, _)| *key)
                .collect();
            for key in in_the_way {
                if let Some(row) = self.table.remove(&key) {
                    self.shadow.insert(key, row);
                }
            }
        }

        fn apply(&mut self, key: u8, version: Version, values: Option<[u8; 2]>) {
            if let Some(row) = self.shadow.remove(&key) {
                self.evict(&row);
                self.table.insert(key, row);
            }
            let known = self.table.get(&key).map(|row| row.0);
            if known.max(self.deleted.get(&key).copied()) < Some(version) {
                match values {
                    Some(values) => {
                        let row = (version, values);
                        self.table.remove(&key);
                        self.evict(&row);
                        self.table.insert(key, row);
                    }
                    None => {
                        self.table.remove(&key);
                        self.deleted.insert(key, version);
                    }
                }
            }
            self.settle();
        }

        fn settle(&mut self) {
            loop {
                let enters = self.shadow.iter().find(|(_, row)| {
                    let others = self.table.values().filter(|other| collide(row, other));
                    judge(row.0, others.map(|other| other.0)) == Verdict::Enters
                });
                let Some((&key, &row)) = enters else { return };
                self.shadow.remove(&key);
                self.evict(&row);
                self.table.insert(key, row);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever the order in which the changes arrive, the table ends as R(S), and the shadow as the rest of S.
        #[test]
        fn every_order_of_arrival_keeps_the_same_rows(
            changes in proptest::collection::vec((0u8..5, proptest::option::weighted(0.8, [0u8..4, 4u8..8])), 1..14),
            seed in any::<u64>(),
        ) {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut changes: Vec<_> = changes
                .into_iter()
                .zip(1..)
                .map(|((key, values), timestamp)| (key, Version { timestamp, node: 1 }, values))
                .collect();
            let mut newest = BTreeMap::new();
            for (key, version, values) in &changes {
                match values {
                    Some(values) => drop(newest.insert(*key, (*version, *values))),
                    None => drop(newest.remove(key)),
                }
            }
            random.shuffle(&mut changes);
            let mut node = Node::default();
            for (key, version, values) in changes {
                node.apply(key, version, values);
            }
            let found: HashSet<u8> = node.table.keys().copied().collect();
            prop_assert_eq!(&found, &kept(&newest));
            let all: BTreeMap<u8, Row> = node.table.into_iter().chain(node.shadow).collect();
            prop_assert_eq!(all, newest);
        }
    }
}
